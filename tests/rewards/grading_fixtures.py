"""Episodes to grade."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentloop.ports import Reward
from agentloop.records import Episode, Failure, Json, Score, Task


def episode(
    answer: str | None, expected: Json = None, *, reason: Any = None, state: Any = None, **task: Any
) -> Episode:
    return Episode(
        id="ep-1",
        task=Task(id="t-1", prompt="?", expected=expected, **task),
        bundle="b",
        purpose="eval",
        run="r",
        seed=0,
        answer=answer,
        failure=Failure(reason=reason, detail="limit 6") if reason else None,
        state=state or {},
    )


def grade(reward: Reward, *episodes: Episode) -> list[Score]:
    return asyncio.run(_score(reward, episodes))


async def _score(reward: Reward, episodes: Sequence[Episode]) -> list[Score]:
    return await reward.score(episodes)


def value(reward: Reward, answer: str | None, expected: Json = None, **more: Any) -> float:
    (score,) = grade(reward, episode(answer, expected, **more))
    assert score.success == (score.value >= 0.99)
    assert score.success or score.feedback
    return score.value
