"""The layer contract, and that importing the package stays light."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch", "trl", "transformers", "vllm", "chromadb", "docker", "langgraph", "litellm", "openai",
    "networkx", "ray", "numpy", "aiohttp", "pydantic", "yaml",
)  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def test_layers_hold() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == 0


def test_import_is_light() -> None:
    loaded = python(f"import agentloop, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_help_is_light() -> None:
    loaded = python(
        "import sys\nfrom agentloop.cli import run\nassert run(['--help']) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert loaded.splitlines()[-1] == "[]"
