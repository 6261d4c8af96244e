"""`python -m agentloop.checks`: re-measure stale checks of all workflows, or render the tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agentloop.checks import render_all, run_stale
from agentloop.errors import AgentLoopError
from agentloop.workspace import Workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; prints the workflows measured. The exit code is the error's, if there is
    one."""
    parser = argparse.ArgumentParser(prog="python -m agentloop.checks", description=__doc__)
    parser.add_argument("--tier", choices=("unit", "toy", "lm"), default="toy")
    parser.add_argument("--minutes", type=float, default=30.0, help="start nothing after this")
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--stale", action="store_true", help="re-measure stale checks")
    todo.add_argument("--render", action="store_true", help="rewrite the tables only")
    given = parser.parse_args(arguments)
    root = Workspace.find().roots[0]
    try:
        if given.stale:
            done = run_stale(root, tier=given.tier, minutes=given.minutes)
            names = ", ".join(done) or "none"
            sys.stdout.write(f"stale {given.tier} checks measured again: {names}\n")
        else:
            render_all(root)
    except AgentLoopError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
