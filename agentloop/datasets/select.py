"""Choose what is worth training on: right, exact, diverse, and never held out.

In: scored episodes. Out: a subset of them in their order. `Selection` is the part that a workflow
names; the functions it is made of are pure and can be used alone. A held-out task in the input is
an error and not a filter: it means that something upstream mixed the splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Annotated

from pydantic import Field

from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Episode, Task

Count = Annotated[int, Field(ge=1)]
Key = Callable[[Episode], Hashable]


@part
class Selection:
    """Successes with exact trajectories, at most so many of a kind."""

    cap_per_task: Count | None = None
    """At most this many episodes of one task."""
    cap_per_group: Count | None = None
    """At most this many episodes of one group (see `choose`)."""
    require_tool_call: bool = False
    """Leave out episodes that were right without calling a tool."""

    def choose(
        self, episodes: Sequence[Episode], *, held_out: Iterable[Task] = (),
        group: Key | None = None,
    ) -> list[Episode]:  # fmt: skip
        """The episodes to train on. `group` names the group of an episode, such as a cluster of
        task texts; without it `cap_per_group` limits the whole.

        Raises `UsageError` when an episode was rolled out for evaluation or its task is held out.
        """
        guard_held_out(episodes, held_out)
        chosen = trainable(successes(episodes))
        if self.require_tool_call:
            chosen = [episode for episode in chosen if calls_tool(episode)]
        chosen = distinct(chosen)
        if self.cap_per_task is not None:
            chosen = capped(chosen, self.cap_per_task, key=_task)
        if self.cap_per_group is not None:
            chosen = capped(chosen, self.cap_per_group, key=group or _everything)
        return chosen


def guard_held_out(episodes: Iterable[Episode], held_out: Iterable[Task]) -> None:
    """Raise `UsageError` if an episode may not be learned from.

    Prompts are compared as well as ids, because two sources may name one task differently; white
    space does not count.
    """
    tasks = list(held_out)
    ids = {task.id for task in tasks}
    prompts = {" ".join(task.prompt.split()) for task in tasks}
    for episode in episodes:
        task = episode.task
        if episode.purpose == "eval":
            raise UsageError(
                f"episode `{episode.id}` was rolled out for evaluation; train on collected ones"
            )
        if task.id in ids or " ".join(task.prompt.split()) in prompts:
            raise UsageError(
                f"episode `{episode.id}` is of the held-out task `{task.id}`; "
                "draw training tasks from the train split"
            )


def successes(episodes: Iterable[Episode]) -> list[Episode]:
    """Those that were right and did not fail in any way."""
    return [episode for episode in episodes if episode.success and episode.failure is None]


def trainable(episodes: Iterable[Episode]) -> list[Episode]:
    """Those with a trainable trajectory that has a sample and never held a secret."""
    return [
        episode
        for episode in episodes
        if any(
            each.trainable and not each.redacted and any(n.sampled for n in each.nodes)
            for each in episode.trajectories
        )
    ]


def calls_tool(episode: Episode) -> bool:
    """Whether a tool was called or answered in a trainable trajectory."""
    return any(
        node.message.tool_calls or node.message.role == "tool"
        for trajectory in episode.trajectories
        if trajectory.trainable
        for node in trajectory.nodes
    )


def distinct(episodes: Iterable[Episode]) -> list[Episode]:
    """The first of those that sampled the same on the same task."""
    first: dict[Hashable, Episode] = {}
    for episode in episodes:
        first.setdefault((_task(episode), _sampled(episode)), episode)
    return list(first.values())


def capped(episodes: Sequence[Episode], limit: int, *, key: Key) -> list[Episode]:
    """At most `limit` of each `key`, in order: first one of each task, then the second of each;
    within a task the better score first, then by id, so the choice does not depend on order."""
    turn: Counter[Hashable] = Counter()
    ranked: list[tuple[int, str, str, int]] = []
    order = sorted(range(len(episodes)), key=lambda at: (-_value(episodes[at]), episodes[at].id))
    for at in order:
        task = _task(episodes[at])
        turn[task] += 1
        ranked.append((turn[task], episodes[at].id, task, at))
    taken: Counter[Hashable] = Counter()
    kept: list[int] = []
    for *_, at in sorted(ranked):
        name = key(episodes[at])
        if taken[name] < limit:
            taken[name] += 1
            kept.append(at)
    return [episodes[at] for at in sorted(kept)]


def _task(episode: Episode) -> str:
    return episode.task.id


def _everything(_: Episode) -> str:
    return ""


def _value(episode: Episode) -> float:
    return episode.score.value if episode.score else 0.0


def _sampled(episode: Episode) -> tuple[Hashable, ...]:
    """What the model wrote: exact ids where there are any, else the text and the calls."""
    return tuple(
        node.token_ids or (node.message.content, repr(node.message.tool_calls))
        for trajectory in episode.trajectories
        if trajectory.trainable
        for node in trajectory.nodes
        if node.sampled
    )
