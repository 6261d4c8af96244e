"""`python -m agentloop.checks`: re-measure stale checks of all workflows, or render the tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agentloop.checks import render_all, run_stale
from agentloop.workspace import Workspace


def main() -> int:
    """Parse and run; prints one line per workflow measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=("unit", "toy", "lm"), default="toy")
    parser.add_argument("--minutes", type=float, default=30.0, help="start nothing after this")
    parser.add_argument("--stale", action="store_true", help="re-measure stale checks")
    parser.add_argument("--render", action="store_true", help="rewrite the tables only")
    given = parser.parse_args()
    space = Workspace.find()
    if given.stale:
        done = run_stale(space, tier=given.tier, minutes=given.minutes)
        sys.stdout.write(f"stale {given.tier} checks measured again: {', '.join(done) or 'none'}\n")
    if given.render or given.stale:
        render_all(space, Path.cwd())
    return 0


if __name__ == "__main__":
    sys.exit(main())
