"""`make demo`: the quickstart cycle on the local model, with what it needs and shows said first.

Joins the ordinary commands into a tour: sizes and minutes, one cycle, one solved and one failed
trajectory before and after, five commands to look around.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from agentloop.cli import show

_HOME = Path(".agentloop/demo")
_NEED_GB = 4.0


def main() -> int:
    """Run the tour; the exit code of its cycle."""
    from agentloop.cli import run

    free = shutil.disk_usage(Path.cwd()).free / 1e9
    show.tell("agentloop demo: a 135M-parameter model learns to use a Python tool.", style="bold")
    show.tell(
        "Needs: 2 cores, 6 GB of free memory, no key, GPU, Docker or network. Takes 8 to 12 "
        f"minutes on 2 cores.\nWrites: {_HOME} (about 100 MB); {free:.0f} GB are free here.",
        style="dim",
    )
    if free < _NEED_GB:
        show.tell(f"only {free:.1f} GB of disk are free; {_NEED_GB:.0f} GB are needed", err=True)
        return 1
    began = time.monotonic()
    code = run(["cycle", "quickstart", "--resume", "--home", str(_HOME)])
    if code:
        return code
    before_and_after()
    show.tell(
        f"\nAll of it took {(time.monotonic() - began) / 60:.1f} minutes. Look around:",
        style="bold",
    )
    for command in (
        "inspect trajectories --solved", "inspect skills", "inspect instructions",
        "inspect decisions", "search 'greatest common divisor'",
    ):  # fmt: skip
        show.tell(f"  .venv/bin/agentloop {command} --home {_HOME}")
    return code


def before_and_after() -> None:
    """One solved and one failed held-out trajectory of the untouched agent and of the champion."""
    from agentloop.store.archive import Archive
    from agentloop.store.query import Query

    archive = Archive(_HOME.resolve())
    pointers = archive.alias_history("quickstart/champion")
    out = show.console()
    for title, bundle in (("before", pointers[0].bundle), ("after", pointers[-1].bundle)):
        show.tell(f"\n{title} (bundle {bundle})", style="bold")
        for success in (True, False):
            query = Query(purpose="eval", bundle=bundle, success=success, limit=1)
            for episode in archive.episodes(query):
                out.print(show.trace(episode, show_system=False))


if __name__ == "__main__":
    sys.exit(main())
