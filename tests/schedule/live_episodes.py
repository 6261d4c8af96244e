"""Live episodes in a log, scored and not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentloop.records import Episode, Score, Task
from agentloop.store.archive import Archive
from agentloop.store.log import Log
from agentloop.store.query import Draft
from agentloop.trajectories.codec import to_json


def live(number: int, *, purpose: str = "serve") -> Episode:
    return Episode(
        id=f"ep-{purpose}-{number}", task=Task(id=f"t-{number}", prompt="?"), bundle="bundle-0",
        purpose=purpose, run="run-1", seed=0,  # type: ignore[arg-type]
    )  # fmt: skip


def add_live(log: Log, n: int, *, first: int = 0, scope: str = "w", purpose: str = "serve") -> None:
    """`n` unscored episodes."""
    episodes = [live(first + at, purpose=purpose) for at in range(n)]
    log.append([
        Draft(kind="episode", key=one.id, body=to_json(one), scope=scope) for one in episodes
    ])  # fmt: skip


def reward(
    archive: Archive, values: Sequence[float], *, first: int = 0, scope: str = "w",
    spec: str = "feedback",
) -> None:  # fmt: skip
    """Episodes with these rewards, in order."""
    add_live(archive.log, len(values), first=first, scope=scope)
    scores = [
        (f"ep-serve-{first + at}", Score(value=value, success=value > 0.5, source="test"))
        for at, value in enumerate(values)
    ]
    asyncio.run(archive.add_scores(scores, spec, scope=scope))
