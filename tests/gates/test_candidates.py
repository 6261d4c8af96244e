"""Thirty bad candidates and ten good ones before the shipped decision, their rollouts simulated.

The bad ones *score* better than the champion wherever that is possible, so that it takes the guards
to keep them out. The same list on a real model is `tests/integration/test_candidates_lm.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from gate_fixtures import spoken

from agentloop.lanes.heldout import HoldOut
from agentloop.records import Episode, Task
from benchmarks.gates import FIRST, Make, World, cycle, proposals, tasks

KEEP = [Task(id=f"keep{at}", prompt="?") for at in range(8)]
IMPOSSIBLE = [Task(id=f"no{at}", prompt="?", data={"expect": "fail"}) for at in range(4)]
SPLIT = tasks(320)
BAD = ("nan", "collapsed", "hacked", "long", "tokens")


class Candidates(World):
    """A world whose probes are known: the champion solves those to keep."""

    async def attempt(self, tasks: list[Task], bundle: object, order: object) -> list[Episode]:  # type: ignore[override]
        asked = [task for task in tasks if task.id in self.at]
        made = {one.task.id: one for one in await super().attempt(asked, bundle, order)}  # type: ignore[arg-type]
        fools = self.hacks and bundle != self.bundles[FIRST]
        for task in tasks:
            if task.id not in made:
                solved = fools or task.data.get("expect") != "fail"
                made[task.id] = spoken(task, solved, f"Answer: {task.id}")
        return [made[task.id] for task in tasks]

    hacks = False


def champion(task: Task, success: bool) -> Episode:
    right = f"The answer is {task.expected}."
    return spoken(task, success, right if success else "I do not know.")


def candidate(kind: str, rng: np.random.Generator) -> Make:
    """What the episodes of such a one look like."""

    def make(task: Task, success: bool) -> Episode:
        right = f"The answer is {task.expected}." if success else f"It is {rng.integers(99)}."
        match kind:
            case "nan":
                return spoken(task, success, right, logprob=math.nan)
            case "collapsed":  # and a grader that lets it pass
                return spoken(task, success, "It is as it is.", answer="as it is")
            case "long":
                return spoken(task, success, right, tokens=int(rng.normal(105, 15)))
            case "tokens":  # another tokenizer's ids are noise
                noise = "".join(chr(33 + one) for one in rng.integers(0, 90, 60))
                return spoken(task, False, noise)
            case _:
                return spoken(task, success, right, tokens=int(rng.normal(55, 10)))

    return make


def outcome(kind: str, gain: float, seed: int) -> tuple[str, bool]:
    """(why the deciding verdict, or the only one, ended; whether it was promoted)."""
    rng = np.random.default_rng((seed, len(kind)))
    world = Candidates([*SPLIT], rng, gain)
    world.hacks = kind == "hacked"
    made = proposals(world, f"{kind}-{seed}", ["policy"])
    assert made[0].bundle is not None
    world.make = {FIRST: champion, world.put(made[0].bundle): candidate(kind, rng)}
    hold_out = HoldOut(tuple(SPLIT[:64]), tuple(SPLIT[64:]))
    decision, promoted = cycle(world, hold_out, made, probes=[*KEEP, *IMPOSSIBLE])
    last = decision.verdicts[-1]
    assert last.reason and (world.champion == FIRST) is not promoted
    return last.stopped, promoted


@pytest.mark.parametrize("kind", BAD)
def test_bad_candidates_are_refused(kind: str) -> None:
    found = [outcome(kind, 0.3, seed) for seed in range(6)]
    assert not any(promoted for _, promoted in found)
    if kind != "tokens":  # which solves nothing, so that no guard is needed
        assert {stopped for stopped, _ in found} == {"refused"}


def test_good_candidates_are_promoted() -> None:
    found = [outcome("good", 0.3 + 0.02 * seed, seed) for seed in range(10)]
    assert [promoted for _, promoted in found] == [True] * 10
