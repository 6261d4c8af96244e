"""The shape of a workflow: what is accepted, and how the first fault is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UnknownName, UsageError
from agentloop.workflows.schema import PartSpec, Workflow, validate

LEAST = {"title": "t", "tasks": "a:B", "reward": {"use": "a:C", "k": 1}}
CHECK = {"id": "c", "tier": "toy", "metric": "m", "bar": 1.0, "source": "s"}


def test_the_least_workflow_and_its_defaults() -> None:
    made = validate(LEAST, "w")
    assert made.tasks == PartSpec(use="a:B") and made.reward.fields == {"k": 1}
    assert (made.model, made.graph, made.sandbox) == ("auto", "react", "monty")
    assert made.lanes == {} and made.checks == () and made.heldout.n == 256
    assert validate({**LEAST, "collect": "a:D"}, "w").collect == PartSpec(use="a:D")


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"tolls": []}, r"unknown key in `w`: `tolls`; did you mean `tools`"),
        ({"limits": {"turn": 1}}, r"key of `limits`.*`turn`; did you mean `turns`"),
        ({"budget": {"x": 1}}, r"key of `budget`.*known: month, rollouts, seconds, tokens, usd"),
        ({"heldout": {"lane": 1}}, r"did you mean `lanes`"),
        ({"decoding": {"temp": 1}}, r"`temp`; did you mean `temperature`"),
        ({"prices": {"m": {"promt": 1}}}, r"`promt`; did you mean `prompt`"),
        ({"checks": [{**CHECK, "sources": 1}]}, r"`sources`; did you mean `source`"),
        ({"scripted": {"tasks": "a:b", "replies": "x", "rewards": "a:b"}}, r"mean `reward`"),
        ({"lanes": {"skill": "a:b"}}, r"`skill`; did you mean `skills`"),
    ],
)
def test_an_unknown_key_and_the_nearest(extra: dict[str, Any], told: str) -> None:
    with pytest.raises(UnknownName, match=told):
        validate({**LEAST, **extra}, "w")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"tasks": "a:B", "reward": "a:C"}, "lacks the key `title`; add it"),
        ({**LEAST, "tasks": {"path": "x"}}, "lacks the key `tasks.use`"),
        ({**LEAST, "tasks": 3}, r"`tasks`: write `package.module:Name`"),
        ({**LEAST, "concurrency": 0}, r"`concurrency`.*greater than or equal to 1"),
        ({**LEAST, "heldout": {"n": 0}}, r"`heldout.n`"),
        ({**LEAST, "limits": {"turns": 0}}, r"`limits.turns` must be above 0"),
        ({**LEAST, "budget": {"usd": -1}}, r"`budget.usd` must be above 0"),
        ({**LEAST, "checks": [{**CHECK, "tier": "big"}]}, r"`checks.0.tier`"),
        ({**LEAST, "checks": [{**CHECK, "ablation": "no"}]}, r"ablation `no`, known: none"),
        ({**LEAST, "title": ["x" * 500]}, r"given: \['x+\.\.\."),
        ([], "must be a mapping"),
        (None, "must be a mapping"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(data: object, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        validate(data, "w")
    assert str(caught.value).count("\n") == 0


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Workflow.model_fields, "other"]), ANY), ANY)
def test_any_data_is_a_workflow_or_one_sentence(changes: dict[str, Any], whole: Any) -> None:
    for data in ({**LEAST, **changes}, whole):
        try:
            validate(data, "w")
        except UsageError as error:
            assert str(error) and len(str(error)) < 2000
