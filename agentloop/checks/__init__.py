"""A workflow's claims, measured: run its checks, keep `results.json`, render the tables.

Goes in: a workflow with `checks`. Comes out: `results.json` beside it (per seed: metrics, seconds,
commit, hash) and the tables in its README and in the index. A result is stale when the hash of the
workflow, its parts or the shipped modules it names has changed since.
"""

from agentloop.checks.render import render_all
from agentloop.checks.results import CheckResult, Results, digest
from agentloop.checks.run import CheckRun, due, run_checks, run_stale

__all__ = [
    "CheckResult", "CheckRun", "Results", "digest", "due", "render_all", "run_checks", "run_stale",
]  # fmt: skip
