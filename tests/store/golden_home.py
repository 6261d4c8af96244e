"""Run as a program: a golden home, as this release writes it. See `tests/store/golden/README.md`.

Goes in: the file to write. Comes out: a backup of a home in which a scripted cycle, a run and a
fork were made, with their workflow and what its state must be, in one archive of under 100 kB.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_workflow

from agentloop.cli import run
from agentloop.store.archive import Archive

SHRUNK = (
    ("rounds: 2, tasks: 12, samples: 2", "rounds: 1, tasks: 6, samples: 1"),
    ("practice: 12", "practice: 4"),
    ("rollouts: 24, dev: 6", "rollouts: 8, dev: 2"),
    ("heldout: {n: 24, lanes: 12}", "heldout: {n: 2, lanes: 2}"),
)
"""What makes a cycle fit into the archive."""


def state(home: Path) -> dict[str, object]:
    """All that a home says, as digests: what a migration may not change."""
    with Archive(home) as archive:
        entries = [[e.seq, e.kind, e.key, e.scope, e.at, e.body] for e in archive.read()]
        aliases = {
            name: [one.bundle, one.reason, one.scope, one.at, one.back]  # no field that came later
            for name, one in archive.aliases().items()
        }
        episodes = [[e.id, e.run, e.success, e.score and e.score.value] for e in archive.episodes()]
    return {
        "rows": len(entries), "entries": _digest(entries), "aliases": _digest(aliases),
        "episodes": _digest(episodes), "solved": sum(bool(one[2]) for one in episodes),
    }  # fmt: skip


def _small() -> str:
    text = tiny_workflow.YAML
    for old, new in SHRUNK:
        if old not in text:
            raise SystemExit(f"`{old}` is not in the tiny workflow any more")
        text = text.replace(old, new)
    return text


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make(target: Path) -> None:
    """Write a golden home to the new file `target`."""
    if target.exists():
        raise SystemExit(f"{target} exists, and a golden home is never made again")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        workflow = tiny_workflow.make(root / "golden", yaml=_small())
        home = ("--home", str(root / "home"))
        assert run(["cycle", str(workflow), *home, "--json"]) == 0
        assert run(["run", str(workflow), "-n", "4", *home, "--json"]) == 0
        with Archive(root / "home") as archive:
            parent = next(e.id for e in reversed(archive.episodes()) if e.usage.calls > 1)
        fork = ["runs", "fork", parent, "--at", "1", "--workflow", str(workflow)]
        assert run([*fork, *home, "--json"]) == 0
        assert run(["store", "backup", str(root / "golden" / "home"), *home]) == 0
        (root / "golden" / "state.json").write_text(json.dumps(state(root / "home"), indent=1))
        shutil.rmtree(workflow / "__pycache__", ignore_errors=True)
        with tarfile.open(target, "x:gz") as archive_file:
            archive_file.add(root / "golden", arcname=".")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
