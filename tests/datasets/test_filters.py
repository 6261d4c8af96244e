"""Each condition leaves out what it names and says so; groups are judged whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from dataset_fixtures import episode, replies
from pydantic import ValidationError

from agentloop.datasets.decontaminate import Decontaminate
from agentloop.datasets.filters import Chosen, Filters, Lent
from agentloop.datasets.near import Dedupe, Near
from agentloop.errors import UsageError
from agentloop.records import Episode, Failure, Task

CALL = "```python\nprint(1)\n```"


class Letters:
    """An embedder for tests: how often each of a few letters stands in a text."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        rows = []
        for text in texts:
            counts = [1e-3, *(float(text.count(letter)) for letter in "xyz")]
            length = sum(one * one for one in counts) ** 0.5
            rows.append([one / length for one in counts])
        return rows


def no_search(kind: str, text: str, k: int) -> list[tuple[str, float]]:
    raise AssertionError("so few are measured without a search")


def ids(chosen: Chosen) -> list[str]:
    return [one.id for one in chosen.episodes]


GOOD = episode("good", 1.0, replies(CALL, "answer", policy="p2"), started=1000.0, parts={"h": 0.2})


@pytest.mark.parametrize(
    ("filters", "other", "reason"),
    [
        (Filters(), replace(GOOD, purpose="eval"), "purpose"),
        (Filters(runs=("r",)), replace(GOOD, run="other"), "run"),
        (Filters(bundles=("b",)), replace(GOOD, bundle="other"), "bundle"),
        (Filters(), replace(GOOD, score=None), "broken or unscored"),
        (
            Filters(),
            replace(GOOD, failure=Failure(reason="model_error", detail="")),
            "broken or unscored",
        ),
        (
            Filters(),
            replace(GOOD, trajectories=(replace(GOOD.trajectories[0], redacted=True),)),
            "not trainable",
        ),
        (
            Filters(without_failures=("token_limit",)),
            replace(GOOD, failure=Failure(reason="token_limit", detail="")),
            "failure",
        ),
        (Filters(since="1970-01-01T00:16:40Z"), replace(GOOD, started=999.0), "before since"),
        (Filters(until="1970-01-01T00:16:41"), replace(GOOD, started=1001.0), "after until"),
        (Filters(max_age_seconds=500), replace(GOOD, started=999.0), "stale"),
        (Filters(max_age_versions=1), replace(GOOD, trajectories=(replies("x"),)), "stale"),
        (Filters(policies=("p2", "base")), episode("other", 1.0, replies("x", policy="p1")),
         "policy"),
        (Filters(success=True), episode("other", 0.0), "success"),
        (Filters(min_reward=0.5), episode("other", 0.4), "reward"),
        (Filters(tools=("python",)), episode("other", 1.0, replies("x")), "tools"),
        (Filters(min_tool_calls=1), episode("other", 1.0, replies("x", "y")), "tools"),
        (Filters(hacks={"h": 0.5, "absent": 0.1}),
         replace(GOOD, score=replace(GOOD.score, parts={"h": 0.6})), "hack"),  # type: ignore[type-var]
        (Filters(max_reward=1.0), episode("other", 1.5), "reward"),
    ],
)  # fmt: skip
def test_a_condition_leaves_out_what_it_names(
    filters: Filters, other: Episode, reason: str
) -> None:
    lent = Lent(now=1500.0, versions=("base", "p1", "p2"))
    other = replace(other, id="other")
    for order in ([GOOD, other], [other, GOOD]):
        chosen = filters.choose(order, lent)
        assert ids(chosen) == ["good"]
        assert chosen.left_out == {reason: 1}


def test_a_version_that_is_not_known_is_stale_and_base_is_one() -> None:
    base, strange = episode("base"), episode("strange", 1.0, replies("x", policy="p9"))
    chosen = Filters(max_age_versions=2).choose([base, strange], Lent(versions=("base", "p1")))
    assert ids(chosen) == ["base"]
    assert ids(Filters(policies=("base",)).choose([base, strange])) == ["base"]


def test_an_age_in_versions_counts_from_the_newest() -> None:
    each = [episode(name, 1.0, replies("x", policy=name)) for name in ("p1", "p2", "p3")]
    lent = Lent(versions=("base", "p1", "p2", "p3"))
    for age, want in ((0, ["p3"]), (1, ["p2", "p3"]), (9, ["p1", "p2", "p3"])):
        assert ids(Filters(max_age_versions=age).choose(each, lent)) == want


def test_tasks_between_too_hard_and_too_easy_are_kept_at_the_very_ends() -> None:
    episodes = [
        episode(f"{right}-{at}", float(at < right), task=f"t{right}")
        for right in range(9) for at in range(8)
    ]  # fmt: skip
    chosen = Filters(min_share=2 / 8, max_share=5 / 8).choose(episodes)
    assert {one.task.id for one in chosen.episodes} == {"t2", "t3", "t4", "t5"}
    assert chosen.left_out == {"group too easy": 24, "group too hard": 16}


def test_groups_of_one_reward_go_and_others_stay_whole() -> None:
    flat = [episode(f"f{at}", 1.0, task="f") for at in range(3)]
    mixed = [episode("m1", 1.0, task="m"), episode("m2", 0.0, task="m")]
    alone = [episode("a", 1.0, task="a")]
    chosen = Filters(mixed_groups=True).choose([*flat, *mixed, *alone])
    assert ids(chosen) == ["m1", "m2"]
    assert chosen.left_out == {"group of one reward": 4}
    assert chosen.shares == {"m1": 0.5, "m2": 0.5}


def test_a_groups_statistics_are_of_those_left_out_too() -> None:
    group = [episode("m1", 1.0), episode("m2", 0.0), episode("m3", 0.0), episode("m4", 0.0)]
    broken = replace(
        episode("m5", 0.0), score=None, failure=Failure(reason="model_error", detail="")
    )
    chosen = Filters(mixed_groups=True, success=True).choose([*group, broken])
    assert (ids(chosen), chosen.shares) == (["m1"], {"m1": 0.25})


def test_a_sample_that_held_a_secret_counts_in_its_group() -> None:
    group = [episode("a", 1.0), episode("b", 1.0), episode("c", 1.0)]
    secret = episode("d", 0.0, replace(replies("x"), redacted=True))
    chosen = Filters(mixed_groups=True).choose([*group, secret])
    assert chosen.shares == {"a": 0.75, "b": 0.75, "c": 0.75}
    assert chosen.left_out == {"not trainable": 1}


def test_credit_compares_with_whole_groups_of_the_scope_however_they_went() -> None:
    def named(task: str, **fields: object) -> list[Episode]:
        return [episode(f"{task}{at}", float(at == 0), task=task, **fields) for at in range(4)]

    kept = named("k")
    lost = [episode(f"l{at}", 0.0, task="l", started=50.0) for at in range(4)]  # none was right
    kept[3] = replace(kept[3], started=-1.0)  # begun before `since`, in a group that was not
    broken = replace(episode("k9", task="k"), score=None)
    elsewhere = [*named("r", run="other"), *named("old", started=-1.0), *named("p", purpose="eval")]
    elsewhere += [episode("v0", 1.0, replies("x", policy="p1"), task="v")]
    filters = Filters(
        runs=("r",), since="1970-01-01T00:00:00Z", policies=("base",), max_age_seconds=60.0,
        success=True, distinct=True, cap_per_task=1, limit=1,
    )  # fmt: skip
    chosen = filters.choose([*lost, *elsewhere, *kept, broken], Lent(now=55.0))
    assert len(chosen.episodes) == 1
    assert {one.id for one in chosen.members} == {one.id for one in (*kept, *lost)}


def test_held_out_tasks_are_an_error_and_evaluations_are_left_out() -> None:
    held_out = [Task(id="secret", prompt="prompt of secret")]
    evaluated = replace(episode("e", task="secret"), purpose="eval")
    chosen = Filters().choose([evaluated, episode("fine")], Lent(held_out=held_out))
    assert (ids(chosen), chosen.left_out) == (["fine"], {"purpose": 1})
    leaked = episode("e", task="new", prompt="prompt  of\nsecret")
    for filters in (Filters(), Filters(decontaminate=Decontaminate())):
        with pytest.raises(UsageError, match="held-out"):
            filters.choose([leaked], Lent(held_out=held_out))


def test_near_copies_of_held_out_tasks_are_left_out() -> None:
    words = " ".join(f"word{at}" for at in range(20))
    copy = episode("copy", task="c", prompt=f"{words} 7")
    lent = Lent(held_out=[Task(id="h", prompt=f"{words} 8")])
    chosen = Filters(decontaminate=Decontaminate()).choose([copy, episode("fine")], lent)
    assert (ids(chosen), chosen.left_out) == (["fine"], {"contaminated": 1})


def test_conditions_then_meaning_then_caps() -> None:
    episodes = [
        episode(f"{letter}{at}", value, replies(letter * (at + 1)), task=f"{letter}{at % 2}",
                prompt=f"{letter}{letter}{'y' * (at % 2)}")
        for letter in "xyz" for at in range(4) for value in [1.0 if at else 0.0]
    ]  # fmt: skip
    lent = Lent(search=no_search, embedder=Letters())
    filters = Filters(success=True, near=Near(text="x", k=3), cap_per_task=1, limit=1)
    chosen = filters.choose(episodes, lent)
    assert ids(chosen) == ["x1"]  # of x1, x2, x3, of which x1 and x3 are of one task
    assert chosen.nearness == {"x1": pytest.approx(2 / 5**0.5, abs=1e-5)}
    assert chosen.left_out == {"success": 3, "not near": 6, "cap_per_task": 1, "limit": 1}
    same = Filters(dedupe=Dedupe(above=0.99)).choose(episodes, lent)
    assert len(ids(same)) == 3
    assert same.left_out == {"same meaning": 9}
    kinds = Filters(cap_per_kind=2).choose(
        episodes, Lent(kind=lambda one: one.id[0])
    )  # fmt: skip
    assert len(ids(kinds)) == 6
    twins = [episode("a", 1.0, replies("x")), episode("b", 1.0, replies("y"))]
    assert ids(Filters(distinct=True).choose(twins)) == ["a"]  # the same tokens


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        (Filters(near=Near(text="x", k=1)), "`near` needs a search"),
        (Filters(dedupe=Dedupe()), "`dedupe` needs an embedder"),
        (Filters(max_age_seconds=1.0), "`max_age_seconds` needs the time"),
        (Filters(max_age_versions=0), "`max_age_versions` needs the policy versions"),
    ],
)
def test_what_was_not_lent_is_said(filters: Filters, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        filters.choose([GOOD])


def test_families_cannot_be_asked_for_and_change_nothing() -> None:
    with pytest.raises(ValidationError):
        Filters(families=("gcd",))  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Filters(purposes=("eval",))  # type: ignore[arg-type]
    named = replace(GOOD, task=replace(GOOD.task, family="another"))
    assert ids(Filters().choose([named])) == ["good"]
    nested = Filters(near={"text": "x", "k": 2}, decontaminate={})  # type: ignore[arg-type]
    assert nested.near == Near(text="x", k=2)
    assert nested.decontaminate == Decontaminate()
