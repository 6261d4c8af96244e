# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv themselves with plain pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which build of torch: see "What you need" in README.md.
TORCH ?= torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export LANGGRAPH_CLI_NO_ANALYTICS = 1

.PHONY: demo test venv check test-integration test-vllm test-slow peers vllm node clean

demo: venv
	$(BIN)/python -m agentloop.cli.demo

# Two at a time, a file's tests in one process.
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

# With a Docker engine of its own, unless DOCKER_HOST names one.
test-integration: $(VENV)/.api
	$(BIN)/python .ci/docker_engine.py $(BIN)/python -m pytest -m "integration and not slow" --timeout 600

test-vllm: $(VENV)/.api vllm
	$(BIN)/python -m pytest -m "integration and not slow" -k vllm --timeout 900

# The same with more seeds, kills and cuts.
test-slow: $(VENV)/.api
	$(BIN)/python .ci/docker_engine.py $(BIN)/python -m pytest -m slow --timeout 1800

check: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/langgraph validate
	$(BIN)/python -m pytest tests/gates_of_the_repository

venv: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version): run make with PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; install it, e.g.: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV): about 2.4 GB with the CPU build of torch, 2 to 4 minutes"
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[local,dev]"
	$(BIN)/agentloop setup local
	@touch $@

$(VENV)/.api: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[local,dev,api,docker]"
	@touch $@

# vLLM lives apart: it pins other versions of torch's libraries than the trainer needs.
vllm:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; run make with PYTHON=python3.12"; exit 2; }
	@$(PYTHON) agentloop/serving/vllm_setup.py .venv-vllm --constraints constraints-vllm.txt

# OpenAI's client for Node, which one test runs.
node: tests/gateway/agents/node_modules/.package-lock.json

tests/gateway/agents/node_modules/.package-lock.json: tests/gateway/agents/package-lock.json
	npm ci --prefix tests/gateway/agents --no-audit --no-fund --ignore-scripts
	@touch $@

peers: venv
	$(BIN)/python -m benchmarks.peers

clean:
	rm -rf $(VENV) .venv-peers .venv-vllm .docker-engine .agentloop dist
