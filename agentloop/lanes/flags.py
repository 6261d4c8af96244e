"""Rollouts that gamed their grader: counted, kept from training, and reason enough to stop.

In: scored episodes. Out: the rate of each flag, the episodes without one, an alarm, or a
`TrainingError`. A grader raises a flag in a part of its score named `flag:...`: 1 where it saw it,
0 where it could have. The decision worth knowing: a flag's rate is over the rollouts that could
show it. Canaries are a random share of the tasks, so the share of them that passes estimates how
much of all success is none; over all rollouts it could never exceed the share of canaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentloop.errors import TrainingError
from agentloop.records import Episode
from agentloop.rewards.grading import FLAG

ALARM = 0.01
"""The rate of a flag from which a person is told."""
STOP = 0.02
"""The rate from which a phase does not begin and a round is not learned from."""


def raised(episode: Episode) -> tuple[str, ...]:
    """The flags that the episode's score raised."""
    parts = episode.score.parts if episode.score is not None else {}
    return tuple(name for name, value in parts.items() if name.startswith(FLAG) and value > 0)


def unflagged(episodes: Sequence[Episode]) -> list[Episode]:
    """Those without a flag, in order."""
    return [one for one in episodes if not raised(one)]


def rates(episodes: Sequence[Episode]) -> dict[str, tuple[int, int]]:
    """Per flag: how many raised it, of how many that could have."""
    scores = [one.score for one in episodes if one.score is not None]
    could = Counter(name for one in scores for name in one.parts if name.startswith(FLAG))
    did = Counter(name for one in episodes for name in raised(one))
    return {name: (did[name], could[name]) for name in sorted(could)}


def alarm(episodes: Sequence[Episode]) -> str:
    """One sentence from a rate of `ALARM` on, else nothing."""
    return _beyond(episodes, ALARM)


def refuse(episodes: Sequence[Episode]) -> None:
    """Raise `TrainingError` from a rate of `STOP` on."""
    if said := _beyond(episodes, STOP):
        raise TrainingError(
            f"too many rollouts gamed their grader: {said}, and the limit is {STOP:.0%}; mend the "
            "grader or its sandbox (nothing was published, and the log is as it was)"
        )


def _beyond(episodes: Sequence[Episode], limit: float) -> str:
    found = [(name, did, could) for name, (did, could) in rates(episodes).items()]
    return "; ".join(
        f"{did} of the {could} that could raise `{name}` did ({did / could:.1%})"
        for name, did, could in found
        if did / could >= limit
    )
