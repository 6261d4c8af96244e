"""The population of instructions: who was proposed, how each scored, who may have children.

Goes in: candidates and scores. Comes out: choices. Everything is plain data, so a population
survives a JSON round trip (`trajectories.codec`) and every operation returns a new one. Rejected
proposals stay in it with their reason: what did not work is part of the record.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Literal

from agentloop.errors import UsageError
from agentloop.records import Instruction, record

Status = Literal["candidate", "active", "pruned"]
Choice = Literal["pareto", "softmax", "tournament"]


@record
class Candidate:
    """One instruction and what is known about it."""

    id: str
    instruction: Instruction
    scores: dict[str, float] = field(default_factory=dict)
    """Task id -> score value in [0, 1]."""
    status: Status = "candidate"
    reason: str = ""
    """Why it was pruned."""

    def mean(self, tasks: Iterable[str] | None = None) -> float:
        """Mean score over `tasks` (default: all that it was scored on), 0 over none."""
        ids = self.scores if tasks is None else [task for task in tasks if task in self.scores]
        return sum(self.scores[task] for task in ids) / len(ids) if ids else 0.0


@record
class Population:
    """Candidates in the order they were proposed. Ids are unique."""

    candidates: tuple[Candidate, ...] = ()

    def __getitem__(self, candidate_id: str) -> Candidate:
        for candidate in self.candidates:
            if candidate.id == candidate_id:
                return candidate
        raise KeyError(candidate_id)

    def __contains__(self, candidate_id: object) -> bool:
        return any(candidate.id == candidate_id for candidate in self.candidates)

    def active(self) -> list[Candidate]:
        """Those that may be parents."""
        return [candidate for candidate in self.candidates if candidate.status == "active"]

    def add(self, candidate: Candidate) -> Population:
        """With one more; raises `UsageError` when its id is taken."""
        if candidate.id in self:
            raise UsageError(f"instruction `{candidate.id}` is already in the population")
        return replace(self, candidates=(*self.candidates, candidate))

    def score(self, candidate_id: str, scores: dict[str, float]) -> Population:
        """With more scores of one candidate; raises `UsageError` on one outside [0, 1]."""
        wrong = {task: value for task, value in scores.items() if not 0.0 <= value <= 1.0}
        if wrong:
            raise UsageError(f"scores must be in [0, 1], got {wrong}")
        known = self[candidate_id]
        return self._with(replace(known, scores={**known.scores, **scores}))

    def mark(self, candidate_id: str, status: Status, reason: str = "") -> Population:
        """With one candidate's status changed."""
        return self._with(replace(self[candidate_id], status=status, reason=reason))

    def _with(self, changed: Candidate) -> Population:
        swapped = (changed if old.id == changed.id else old for old in self.candidates)
        return replace(self, candidates=tuple(swapped))

    def best(self) -> Candidate:
        """The active candidate of the highest mean; of equals the shorter text, then the older.
        Raises `UsageError` when none is active."""
        active = self.active()
        if not active:
            raise UsageError("the population has no active instruction; evaluate the seed first")
        return max(active, key=lambda one: (one.mean(), -len(one.instruction.text)))

    def front(self) -> list[Candidate]:
        """Active candidates that nobody beats on at least one task (the per-task Pareto front
        of Agrawal et al. 2025, arXiv:2507.19457, without its removal of dominated ones)."""
        active = self.active()
        top: dict[str, float] = {}
        for candidate in active:
            for task, value in candidate.scores.items():
                top[task] = max(value, top.get(task, 0.0))
        return [
            one for one in active if any(value >= top[task] for task, value in one.scores.items())
        ]

    def draw(
        self, rng: random.Random, *, choice: Choice = "pareto", temperature: float = 0.05
    ) -> Candidate:
        """A parent. `softmax`: with probability proportional to exp(mean / temperature);
        `pareto`: the same among the front; `tournament`: the better of two. Raises `UsageError`
        when none is active."""
        best = self.best()
        if choice == "tournament":
            pair = [rng.choice(self.active()) for _ in range(2)]
            return max(pair, key=Candidate.mean)
        pool: Sequence[Candidate] = self.front() if choice == "pareto" else self.active()
        # A population that was never scored has no front.
        pool = pool or self.active()
        weights = [math.exp((one.mean() - best.mean()) / temperature) for one in pool]
        return best if not any(weights) else rng.choices(pool, weights)[0]

    def prune(self, keep: int) -> Population:
        """With only the `keep` best still active."""
        ranked = sorted(self.active(), key=Candidate.mean, reverse=True)
        pruned = self
        for candidate in ranked[max(keep, 1) :]:
            pruned = pruned.mark(candidate.id, "pruned", f"not among the {keep} best")
        return pruned
