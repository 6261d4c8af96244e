"""Credit reaches every sample, in groups of one start, whatever the order of the episodes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from dataset_fixtures import episode, node, replies
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentloop.datasets.credit import (
    AttemptsCredit,
    Credit,
    CriticsCredit,
    GroupCredit,
    PercentileCredit,
    StepCredit,
)
from agentloop.datasets.groups import attempts, group_of, samples, tools_called
from agentloop.errors import UsageError
from agentloop.records import Message, Node, ToolCall, Trajectory


def again(nodes: Trajectory, text: str = "Try again.") -> Trajectory:
    """The conversation with a person's word and another reply after it."""
    last = len(nodes.nodes) - 1
    return Trajectory(
        nodes=(
            *nodes.nodes,
            node(last, "user", (70, 71), text),
            node(last + 1, "assistant", (80, 81), "mended"),
        )
    )


def test_every_sample_of_an_episode_gets_its_advantage() -> None:
    two = episode("a", 1.0, replies("call", "answer"))
    credits = GroupCredit().assign([two, episode("b", 0.0)])
    assert credits == {("a", 0, 1): 0.5, ("a", 0, 3): 0.5, ("b", 0, 1): -0.5}


def test_groups_are_of_one_task_bundle_run_policy_and_start() -> None:
    one = episode("a")
    assert group_of(replace(one, id="b", sample=3, started=9.0)) == group_of(one)
    other_start = replies("x")
    other_start = replace(
        other_start,
        nodes=(
            replace(other_start.nodes[0], message=Message(role="user", content="another")),
            *other_start.nodes[1:],
        ),
    )
    others = [
        replace(one, run="other"),
        replace(one, bundle="other"),
        replace(one, purpose="train"),
        episode("a", task="other"),
        episode("a", 1.0, replies("x", policy="policy-1")),
        episode("a", 1.0, other_start),
    ]
    assert len({group_of(each) for each in (one, *others)}) == 1 + len(others)


@given(
    st.lists(
        st.tuples(st.sampled_from("tu"), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 3)),
        min_size=1, max_size=10,
    ),
    st.randoms(use_true_random=False),
    st.sampled_from([
        GroupCredit(), GroupCredit(baseline="mean_std"), GroupCredit(baseline="leave_one_out"),
        PercentileCredit(), StepCredit(), CriticsCredit(weights={"": 1.0, "form": 0.5}),
    ]),
)  # fmt: skip
def test_credit_does_not_depend_on_order_and_covers_all_samples(
    drawn: list[tuple[str, float, int]], chance: random.Random, credit: Credit
) -> None:
    episodes = [
        episode(f"e{at}", value, replies(*map(str, range(turns))), task=task,
                steps=tuple(float(at % 3) for _ in range(turns)), parts={"form": at % 2})
        for at, (task, value, turns) in enumerate(drawn)
    ]  # fmt: skip
    mixed = list(episodes)
    chance.shuffle(mixed)
    found = credit.assign(episodes)
    assert credit.assign(mixed) == found
    assert set(found) == {(one.id, *place) for one in episodes for place in samples(one)}


def test_what_may_not_be_learned_from_gets_no_credit() -> None:
    locked = replace(replies("x"), trainable=False)
    secret = replace(replies("x"), redacted=True)
    mixed = episode("a", 1.0, locked, secret, replies("y"))
    assert set(GroupCredit().assign([mixed])) == {("a", 2, 1)}


@pytest.mark.parametrize(
    "credit", [GroupCredit(), StepCredit(baseline="mean"), CriticsCredit(weights={"": 1.0})]
)
def test_a_sample_that_held_a_secret_counts_in_its_groups_baseline(credit: Credit) -> None:
    open_ = [episode(f"e{at}", 0.25 * at, replies("1", "2"), steps=(0.5, at)) for at in range(3)]
    last = episode("e3", 1.0, replace(replies("1", "2"), redacted=True), steps=(0.5, 3.0))
    untold = replace(last, trajectories=(replies("1", "2"),))
    want = {at: one for at, one in credit.assign([*open_, untold]).items() if at[0] != "e3"}
    assert credit.assign([*open_, last]) == want
    assert group_of(last) == group_of(untold)


def test_a_percentile_is_over_the_means_of_the_newest_groups() -> None:
    old = [episode("o1", 1.0, task="o", started=1.0), episode("o2", 1.0, task="o", started=1.0)]
    new = [episode("n1", 0.5, task="n", started=2.0), episode("n2", 0.0, task="n", started=2.0)]
    both = PercentileCredit().assign([*old, *new])
    assert both["n1", 0, 1] == 0.5 - (1.0 + 0.25) / 2
    newest = PercentileCredit(last=1).assign([*old, *new])
    assert newest["n1", 0, 1] == 0.25


def test_steps_are_paid_in_their_order() -> None:
    pair = [
        episode("a", 1.0, replies("1", "2"), steps=(0.0, 2.0)),
        episode("b", 0.0, replies("1"), steps=(1.0,)),
    ]
    found = StepCredit(baseline="mean", alpha=0.5).assign(pair)
    assert found == {("a", 0, 1): 0.0, ("a", 0, 3): 1.0, ("b", 0, 1): -0.5}
    with pytest.raises(UsageError, match=r"1 step rewards for 2"):
        StepCredit().assign([episode("a", 1.0, replies("1", "2"), steps=(1.0,))])


def test_a_part_that_the_score_lacks_is_named() -> None:
    with pytest.raises(UsageError, match="no part `form`; it has: tidy"):
        CriticsCredit(weights={"form": 1.0}).assign([episode("a", parts={"tidy": 1.0})])
    with pytest.raises(UsageError, match="no score"):
        GroupCredit().assign([replace(episode("a"), score=None)])
    with pytest.raises(ValidationError):
        CriticsCredit(weights={})


def test_a_second_attempt_begins_with_a_person_and_not_with_a_tool() -> None:
    assert attempts(replies("call", "answer")) == [1, 1, 1, 1]
    assert attempts(again(replies("call", "answer"))) == [1, 1, 1, 1, 2, 2]
    tool = again(replies("x"))
    native = replace(tool, nodes=(*tool.nodes[:2], node(1, "tool", (5,)), node(2, "assistant")))
    assert attempts(native) == [1, 1, 1, 1]


def test_attempts_are_paid_apart() -> None:
    mended = episode("a", 1.0, again(replies("x")), parts={"first": 0.0})
    spoilt = episode("b", 0.0, again(replies("y")), parts={"first": 1.0})
    found = AttemptsCredit(bonus=10.0).assign([mended, spoilt])
    assert (found["a", 0, 1], found["b", 0, 1]) == (-0.5, 0.5)
    assert (found["a", 0, 3], found["b", 0, 3]) == (10.5, -10.5)
    held = AttemptsCredit(bonus=10.0, first=0.0).assign([mended, spoilt])
    assert (held["a", 0, 1], held["a", 0, 3]) == (0.0, 10.5)


def test_tools_are_found_in_calls_and_in_plain_text() -> None:
    plain = episode("a", 1.0, replies("```python\nprint(1)\n```", "```bash\nls\n```"))
    assert tools_called(plain) == ["python"]  # the last block was not answered, so not run
    call = Message(
        role="assistant", content="", tool_calls=(ToolCall(id="1", name="look", arguments={}),)
    )
    native = Trajectory(nodes=(Node(parent=None, message=call, token_ids=(1,), sampled=True),))
    assert tools_called(episode("b", 1.0, native)) == ["look"]
    assert tools_called(episode("c")) == []


def test_every_shipped_credit_is_one() -> None:
    shipped: list[object] = [
        GroupCredit(), PercentileCredit(), StepCredit(), AttemptsCredit(),
        CriticsCredit(weights={"": 1.0}),
    ]  # fmt: skip
    assert all(isinstance(one, Credit) for one in shipped)
    assert all(one.assign([]) == {} for one in shipped if isinstance(one, Credit))
