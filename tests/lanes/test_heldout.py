"""Which held-out tasks choose, which decide, and how often they did before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from gate_fixtures import numbered
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.lanes.heldout import HoldOut, drawn, split, use_of
from agentloop.ports import Split
from agentloop.records import Episode, Task, Verdict
from agentloop.store.archive import Archive
from agentloop.tasks.reasoning_gym import ReasoningGym
from agentloop.tasks.split import interleave


class File:
    """`size` held-out tasks, shuffled by the seed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        import random

        assert split == "heldout"
        return random.Random(seed).sample(numbered(self.size), min(n, self.size))

    def learn(self, episodes: Sequence[Episode]) -> None:
        pass


def ids(tasks: Sequence[Task]) -> set[str]:
    return {task.id for task in tasks}


@given(st.integers(2, 60), st.integers(1, 40), st.integers(1, 20))
def test_two_sides_that_share_nothing(size: int, n: int, lanes: int) -> None:
    made = split(File(size), "cycle-1", n=n, lanes=lanes)
    assert made == split(File(size), "cycle-1", n=n, lanes=lanes)
    assert 1 <= len(made.lanes) <= lanes and 1 <= len(made.final) <= n
    assert not ids(made.lanes) & ids(made.final)


class InTurn(File):
    """Gives two families in turn until the small one ends, as sources of tasks do."""

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        small, large = (
            [replace(one, id=f"{name}-{one.id}", family=name) for one in numbered(many)]
            for name, many in (("small", self.size // 8), ("large", self.size))
        )
        return list(interleave([small, large]))[:n]


def test_no_family_comes_first() -> None:
    made = split(InTurn(400), "cycle-1", n=200, lanes=100)
    for side in (made.lanes, made.final):
        share = sum(task.family == "small" for task in side) / len(side)
        first = sum(task.family == "small" for task in side[:40]) / 40
        assert abs(first - share) < 0.15
    assert made != split(InTurn(400), "cycle-2", n=200, lanes=100)


def test_a_large_source_fills_both_and_a_small_one_is_shared_out() -> None:
    made = split(File(4000), "cycle-1", n=200, lanes=100)
    assert (len(made.lanes), len(made.final)) == (100, 200)
    small = split(File(120), "cycle-1", n=200, lanes=100)
    assert len(small.lanes) + len(small.final) == 120 and 25 < len(small.lanes) < 55


def test_what_chose_once_never_decides_and_cycles_draw_anew() -> None:
    chose, decided, draws = set[str](), set[str](), set[frozenset[str]]()
    for number in range(20):
        made = split(File(300), f"cycle-{number}", n=60, lanes=30)
        chose |= ids(made.lanes)
        decided |= ids(made.final)
        draws.add(frozenset(ids(made.final)))
    assert not chose & decided and len(draws) == 20 and len(decided) > 150


def test_fewer_than_two_tasks_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="there are 1 held-out tasks"):
        split(File(1), "cycle-1", n=8, lanes=8)


def test_generated_tasks_are_new_in_each_cycle() -> None:
    pytest.importorskip("reasoning_gym")
    source = ReasoningGym(families=["chain_sum"])
    first, second = (split(source, name, n=20, lanes=10) for name in ("cycle-1", "cycle-2"))
    assert len(first.final) == 20 and not ids(first.final) & ids(second.final)
    assert ids(first.final) <= ids(drawn(source, "cycle-1", 30))


def test_all_uses_together_spend_alpha() -> None:
    shares = [HoldOut((), (), use).share for use in range(1, 100_000)]
    assert shares[0] == pytest.approx(6 / math.pi**2) and shares == sorted(shares, reverse=True)
    assert 0.9999 < math.fsum(shares) < 1


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


def verdict(outcomes: Sequence[str], *, final: bool = True, use: int = 1) -> Verdict:
    return Verdict(
        subject="joint", champion="a", challenger="b", n=len(outcomes), champion_rate=0.0,
        challenger_rate=0.0, effect=0.0, ci95=(-1.0, 1.0), p=1.0, tokens_ratio=1.0, passed=False,
        reason="", outcomes=tuple((one, 0, 0) for one in outcomes), final=final, use=use,
    )  # fmt: skip


def test_other_cycles_that_were_decided_on_these_tasks_count(archive: Archive) -> None:
    def use(cycle: str, *names: str) -> int:
        return use_of(archive, "w", cycle, names)

    assert use("cycle-1", "a", "b") == 1
    archive.add_verdict(verdict(["d"], final=False), "cycle-1", scope="w")  # a lane alone
    assert use("cycle-1", "a", "d") == 1
    archive.add_verdict(verdict(["a", "b"]), "cycle-1", scope="w")
    archive.add_verdict(verdict(["a"]), "cycle-1", scope="another workflow")
    assert use("cycle-2", "b", "c") == 2 and use("cycle-2", "c") == 1
    archive.add_verdict(verdict(["b", "c"], use=2), "cycle-2", scope="w")
    assert use("cycle-3", "b") == 3 and use("cycle-3", "c") == 2
    # a resumed cycle goes on with what it recorded, whatever came between
    assert use("cycle-1", "a", "b") == 1 and use("cycle-2", "b", "c") == 2
    archive.add_verdict(replace(verdict([]), stopped="refused"), "cycle-4", scope="w")
    assert use("cycle-5", "b") == 3  # nothing was looked at
    # a task that chose in another cycle, before the settings put it on the deciding side
    assert use("cycle-5", "d") == 2


def test_a_task_that_changes_sides_with_the_settings_counts_as_used(archive: Archive) -> None:
    before = split(File(300), "cycle-1", n=60, lanes=60)
    archive.add_verdict(verdict(sorted(ids(before.lanes)), final=False), "cycle-1", scope="w")
    same = split(File(300), "cycle-2", n=60, lanes=60)
    assert use_of(archive, "w", "cycle-2", ids(same.final)) == 1
    moved = split(File(300), "cycle-3", n=100, lanes=20)
    assert ids(before.lanes) & ids(moved.final)
    assert use_of(archive, "w", "cycle-3", ids(moved.final)) == 2
