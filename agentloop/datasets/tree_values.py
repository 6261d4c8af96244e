"""What a finished tree search teaches: the value of every prefix, and the paths worth imitating.

In: a trajectory whose branches are paths of steps (each reply of the model continues the path of
the replies before it), and which ends are right. Out: process values in [0, 1], and verified paths
as episodes of one branch with their exact tokens. Decision: the tree is read off the trajectory, so
every step that was sampled counts, those included that the search only rolled forward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agentloop.records import Episode, Score, Trajectory, Usage, content_id
from agentloop.trajectories.search_tree import states_answer


@dataclass(frozen=True)
class Steps:
    """The distinct paths of a search; the root, number 0, is the task itself."""

    parents: tuple[int | None, ...]
    texts: tuple[str, ...]
    nodes: tuple[int | None, ...]
    """The first node of the trajectory that sampled each."""

    def path(self, step: int) -> list[int]:
        """Numbers of the steps from the first to `step`."""
        found: list[int] = []
        at: int | None = step
        while at:
            found.append(at)
            at = self.parents[at]
        return found[::-1]

    def prefix(self, step: int) -> list[str]:
        """Their texts."""
        return [self.texts[at] for at in self.path(step)]

    @property
    def ends(self) -> list[int]:
        """Steps that state an answer."""
        return [at for at in range(1, len(self.texts)) if states_answer(self.texts[at])]


def steps_of(trajectory: Trajectory) -> Steps:
    """The tree of sampled replies; equal replies to the same path are one step."""
    parents: list[int | None] = [None]
    texts, nodes = [""], list[int | None]([None])
    known: dict[tuple[int, str], int] = {}
    place: dict[int | None, int] = {None: 0}  # node of the trajectory -> its step
    for number, node in enumerate(trajectory.nodes):
        before = place[node.parent]
        text = node.message.content.strip()
        if not node.sampled or not text:
            place[number] = before
            continue
        if (before, text) not in known:
            known[before, text] = len(texts)
            parents.append(before)
            texts.append(text)
            nodes.append(number)
        place[number] = known[before, text]
    return Steps(tuple(parents), tuple(texts), tuple(nodes))


def process_values(
    parents: Sequence[int | None], right: Collection[int], wrong: Collection[int]
) -> list[float | None]:
    """The value of each node of a tree whose ends were graded; `None` where nothing is known.

    A right end is 1 step from correct, a node above it one more than its nearest child; the path to
    a wrong end is as far as the nearest ancestor with a distance. From the root's 0 down, a step
    that leads to a right end closes `1 / distance` of what its parent lacks, any other loses as
    much, never below 0 (ReST-MCTS*, `MCTS/base.py` of its repository). Nothing is known in a tree
    without a right end, and on paths that were never finished.
    """
    distance: list[int | None] = [None] * len(parents)
    on_path = [False] * len(parents)
    for end in right:
        distance[end], on_path[end] = 1, True
    for node in sorted(right, reverse=True):
        _approach(parents, node, distance, on_path)
    for end in wrong:
        _inherit(parents, end, distance)
    values: list[float | None] = [None] * len(parents)
    for node, parent in enumerate(parents):  # parents come before their children
        reached = distance[node]
        if reached is None:
            continue
        above = 0.0 if parent is None else values[parent]
        if parent is None or above is None:
            values[node] = 0.0
            continue
        sign = 1.0 if on_path[node] else -1.0
        values[node] = max(0.0, above + sign * (1.0 - above) / reached)
    return values


def worth_imitating(
    steps: Steps, right: Iterable[int], values: Mapping[int, float], *, floor: float
) -> list[int]:
    """Right ends of which no step before the end is poor: step k of K is worth at least `floor`
    times `k / K`, what even progress would make it (a path can end right by luck). Steps without a
    value pass."""
    kept = []
    for end in right:
        path = steps.path(end)
        due = {step: floor * place / len(path) for place, step in enumerate(path[:-1], start=1)}
        if all(values.get(step, 1.0) >= least for step, least in due.items()):
            kept.append(end)
    return kept


def single(episode: Episode, steps: Steps, end: int, *, answer: str, score: Score) -> Episode:
    """The path to `end` as an episode of its own. It used nothing: the search it is from paid."""
    [trajectory] = episode.trajectories
    path: list[int] = []
    at = steps.nodes[end]
    while at is not None:
        path.append(at)
        at = trajectory.nodes[at].parent
    chain = [
        replace(trajectory.nodes[number], parent=place - 1 if place else None)
        for place, number in enumerate(reversed(path))
    ]
    return replace(
        episode,
        id=content_id("ep", episode.id, steps.prefix(end)),
        purpose="collect",
        trajectories=(replace(trajectory, nodes=tuple(chain), drift=0, clean=0, realigned=0),),
        answer=answer,
        failure=None,
        score=score,
        usage=Usage(),
    )


def _approach(
    parents: Sequence[int | None], node: int, distance: list[int | None], on_path: list[bool]
) -> None:
    """Note, on the way from a right end to the root, the distance by the shortest way."""
    at, steps = parents[node], 1
    while at is not None:
        steps += 1
        known = distance[at]
        distance[at] = steps if known is None else min(known, steps)
        on_path[at] = True
        at = parents[at]


def _inherit(parents: Sequence[int | None], end: int, distance: list[int | None]) -> None:
    path: list[int] = []
    at: int | None = end
    while at is not None and distance[at] is None:
        path.append(at)
        at = parents[at]
    if at is not None:
        for node in path:
            distance[node] = distance[at]
