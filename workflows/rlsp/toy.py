"""Guess and check: a made-up task on which searching pays, for `measures.py`.

Goes in: a policy. Comes out: rollouts as the records that a language model's would be, so that the
shipped reward, credit, rows and loss are what learns. The candidates of a task come to mind one
after the other, the right one seldom first; a check of one is right nine times in ten. What is
sampled is one move a turn; what is shown is the candidate and what is known of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agentloop.records import Episode, Score
from agentloop.rewards import penalties

if TYPE_CHECKING:
    from torch import Tensor

    from agentloop.training.toy import ToyPolicy

MOVES = ("answer", "check", "next", "pad")
"""Answer with the candidate at hand, check it, take the next one, or say something over again."""
STATES = ("new", "passed", "failed")
CANDIDATES, KINDS, TURNS, TRUE = 6, 16, 12, 0.9
"""Candidates of a task; kinds of task, each learned by itself; moves before it is over; how often
a check is right."""
RANKS = (0.3, 0.25, 0.15, 0.1, 0.1, 0.1)
"""How likely each candidate is the right one, in the order in which they come to mind."""
SHOWN, KIND = len(MOVES), len(MOVES) + len(STATES) * CANDIDATES
VOCABULARY = KIND + KINDS
ROWS = KINDS * len(STATES)
DEMONSTRATED = {
    "new": (0.60, 0.22, 0.08, 0.10), "passed": (0.70, 0.12, 0.08, 0.10),
    "failed": (0.45, 0.10, 0.35, 0.10),
}  # fmt: skip
"""Moves of the traces that are imitated first: mostly an answer at once."""
COST, LONGEST = 1.0, 12
"""Of the exploration reward: a quarter of the usual length, and what more does not pay beyond."""


@dataclass
class Walk:
    """One rollout under way."""

    kind: int
    right: int
    chance: random.Random
    at: int = 0
    state: str = "new"
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = [KIND + self.kind, self.shown]

    @property
    def shown(self) -> int:
        """The token that says which candidate is at hand and what is known of it."""
        return SHOWN + STATES.index(self.state) * CANDIDATES + self.at

    @property
    def over(self) -> bool:
        """Answered, or out of moves."""
        return "answer" in self.moves[-1:] or len(self.moves) >= TURNS

    def move(self, token: int, logprob: float) -> None:
        """One sampled move and what it shows."""
        name = MOVES[min(token, len(MOVES) - 1)]
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.moves.append(name)
        if name == "check":
            told = (self.at == self.right) == (self.chance.random() < TRUE)
            self.state = "passed" if told else "failed"
        if name == "next":
            self.at, self.state = (self.at + 1) % CANDIDATES, "new"
        if name != "answer":
            self.ids.append(self.shown)

    @property
    def correct(self) -> bool | None:
        """`None` without an answer."""
        return self.at == self.right if self.moves[-1:] == ["answer"] else None

    @property
    def thought(self) -> list[int]:
        """What was seen and done before the answer."""
        return self.ids[1:-1] if self.correct is not None else self.ids[1:]

    @property
    def seen(self) -> list[int]:
        """What was shown: a candidate and what is known of it, as often as it was."""
        return self.ids[1::2]


def walks(policy: ToyPolicy, tasks: int, samples: int, chance: random.Random) -> list[Walk]:
    """`samples` rollouts of each of `tasks` tasks, task by task."""
    import torch

    made = []
    for _ in range(tasks):
        kind = chance.randrange(KINDS)
        right = chance.choices(range(CANDIDATES), weights=RANKS)[0]
        made += [Walk(kind, right, random.Random(chance.random())) for _ in range(samples)]
    while going := [one for one in made if not one.over]:  # all of one length
        drawn = policy.sample(torch.tensor([one.ids for one in going]), 1)
        for one, token, logprob in zip(
            going, drawn.tokens[:, -1].tolist(), drawn.logp[:, 0].tolist(), strict=True
        ):
            one.move(token, logprob)
    return made


def episode(walk: Walk, name: str, task: str, *, distinct: bool) -> Episode:
    """The rollout as a record, scored with the shipped reward. Its length is the number of
    different things that were seen, or with `distinct` off of all of them."""
    from agentloop.training.toy_rows import Turn
    from agentloop.training.toy_rows import episode as record

    first, rest = walk.ids[:2], walk.ids[2:]
    shown = [tuple(first), *((token,) for token in rest[1::2])]
    turns = [
        Turn(seen, (move,), (logprob,))
        for seen, move, logprob in zip(shown, rest[::2], walk.logprobs, strict=False)
    ]
    length = penalties.distinct(walk.seen, 1) if distinct else len(walk.seen)
    parts = penalties.searching(walk.correct, length, COST, LONGEST)
    right = bool(walk.correct)
    score = Score(value=float(right), success=right, source="toy", parts=parts)
    return replace(record(name, task, turns, float(right)), score=score)


def imitation(made: Sequence[Walk]) -> tuple[Tensor, Tensor]:
    """Token ids, and which of them (but the first) were moves, padded to one length."""
    import torch

    width = max(len(one.ids) for one in made)
    ids = torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in made])
    mask = torch.zeros(len(made), width - 1, dtype=torch.bool)
    for row, one in enumerate(made):
        mask[row, 1 : 1 + 2 * len(one.moves) : 2] = True
    return ids, mask


def context(prefix: Tensor) -> Tensor:
    """The row of the table: the kind of task and what is known of the candidate. What follows a
    move or padding is never read and may be any row."""
    state = ((prefix[:, -1] - SHOWN) // CANDIDATES).clamp(0, len(STATES) - 1)
    return (prefix[:, 0] - KIND).clamp(0, KINDS - 1) * len(STATES) + state
