"""Stored rows to aligned tokens, steps and parts: nothing is lost, doubled or parted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UnknownName, UsageError
from agentloop.records import Message, Row, Sampling
from agentloop.training.replay_rows import Part, Sample, parts, sample, steps, temperature_of
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.settings import settings_of

ROW = Row(
    episode="e",
    prompt=(),
    segments=((5, 6, 7), (8, 9), (10,), (11, 12)),
    sampled=(False, True, False, True),
    logprobs=((), (-0.5, -0.25), (), (-1.0, -2.0)),
    advantages=(0.0, 0.5, 0.0, -0.5),
    group="g",
    reward=1.0,
    share=0.25,
    sampling=Sampling(temperature=0.7),
)
GRADIENT, AWARE = ReplaySettings(), ReplaySettings(loss="negative_aware")


def test_a_row_token_by_token() -> None:
    found = sample(ROW, GRADIENT)
    assert found.ids == (5, 6, 7, 8, 9, 10, 11, 12)
    assert found.sampled == (False, False, False, True, True, False, True, True)
    assert found.old == (0, 0, 0, -0.5, -0.25, 0, -1.0, -2.0)
    assert found.advantages == (0, 0, 0, 0.5, 0.5, 0, -0.5, -0.5)
    assert found.first == (False, False, False, True, True, False, False, False)
    assert found.context == 3
    assert sample(replace(ROW, advantages=(9.0, 0.5, 9.0, -0.5)), GRADIENT) == found


def test_the_first_attempt_may_have_several_turns() -> None:
    two = replace(ROW, attempts=(1, 1, 1, 1))
    assert sample(two, GRADIENT).first == sample(two, GRADIENT).sampled
    two = replace(ROW, attempts=(1, 1, 2, 2))
    assert sample(two, GRADIENT).first == sample(ROW, GRADIENT).first
    with pytest.raises(UsageError, match="unaligned"):
        sample(replace(ROW, attempts=(1, 1)), GRADIENT)


def test_what_is_right_is_the_label_or_a_full_reward() -> None:
    assert sample(ROW, AWARE).correct
    assert not sample(replace(ROW, reward=0.98), AWARE).correct
    assert not sample(replace(ROW, label=False), AWARE).correct
    assert sample(replace(ROW, label=True, reward=0.0), AWARE).correct
    assert sample(ROW, AWARE).share == 0.25


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": (Message(role="user", content="x"),)}, "prompt to render"),
        ({"logprobs": ()}, "no log-probs"),
        ({"logprobs": ((), (-0.5,), (), (-1.0, -2.0))}, "1 log-probs"),
        ({"advantages": ()}, "no advantages"),
        ({"advantages": (0, float("nan"), 0, 0)}, "not finite"),
        ({"sampled": (True, True, False, True), "logprobs": ((-1.0,) * 3, *ROW.logprobs[1:])},
         "begins with a sampled token"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_replayed_says_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sample(replace(ROW, **change), GRADIENT)


def test_groups_all_right_or_all_wrong_are_refused() -> None:
    for share in (None, 0.0, 1.0):
        with pytest.raises(UsageError, match="left out"):
            sample(replace(ROW, share=share), AWARE)
    with pytest.raises(UsageError, match="neither"):
        sample(replace(ROW, reward=None), AWARE)


def test_one_temperature_and_no_cut_off() -> None:
    assert temperature_of([ROW, ROW], GRADIENT) == 0.7
    assert temperature_of([replace(ROW, sampling=None)], ReplaySettings(temperature=1.1)) == 1.1
    other = replace(ROW, sampling=Sampling(temperature=1.0))
    with pytest.raises(UsageError, match=r"0\.7, 1\.0"):
        temperature_of([ROW, other], GRADIENT)
    with pytest.raises(UsageError, match="temperature 0"):
        temperature_of([replace(ROW, sampling=Sampling())], GRADIENT)
    for cut in (Sampling(temperature=1, top_p=0.9), Sampling(temperature=1, top_k=5)):
        with pytest.raises(UsageError, match="cut_off"):
            temperature_of([replace(ROW, sampling=cut)], GRADIENT)
        assert temperature_of([replace(ROW, sampling=cut)], ReplaySettings(cut_off="keep")) == 1


def test_settings_are_checked_before_a_process_starts() -> None:
    assert settings_of(ReplaySettings, {"clip": None}).clip is None
    found = settings_of(ReplaySettings, {"anchor": {"to": "ema", "weight": 0.1}, "weights": "full"})
    assert (found.anchor.to, found.weights) == ("ema", "full")
    with pytest.raises(UnknownName, match="entropy"):
        settings_of(ReplaySettings, {"entropi": 0.1})
    with pytest.raises(UsageError, match=r"anchor\.keep"):
        settings_of(ReplaySettings, {"anchor": {"keep": 1.5}})
    centred = {"estimator": "centred", "weight": 0.1}
    assert settings_of(ReplaySettings, {"anchor": centred}).anchor.weight == 0.1
    with pytest.raises(UsageError, match="whole rows"):
        settings_of(ReplaySettings, {"anchor": {**centred, "first": 1.0}})
    with pytest.raises(UsageError, match="policy_gradient"):
        settings_of(ReplaySettings, {"anchor": centred, "loss": "negative_aware"})


@st.composite
def batches(draw: Any) -> list[Sample]:
    found = []
    for group in range(draw(st.integers(1, 5))):
        prompt = draw(st.lists(st.integers(2, 4), min_size=2, max_size=30))
        for _ in range(draw(st.integers(1, 4))):
            own = draw(st.lists(st.integers(2, 4), max_size=6))
            end = draw(st.integers(1, 9))
            ids = (*prompt, *own, *range(end))
            flags = (False,) * (len(ids) - end) + (True,) * end
            zeros = (0.0,) * len(ids)
            found.append(Sample(ids, flags, zeros, zeros, flags, f"g{group}"))
    return found


def computed(samples: list[Sample], part: Part) -> int:
    rest = max(len(samples[at].ids) for at in part.rows) - part.shared
    return len(part.heads) * part.shared + len(part.rows) * rest


@given(batches(), st.integers(1, 200), st.booleans())
def test_parts_hold_every_row_once_and_share_only_what_is_common(
    samples: list[Sample], at_once: int, share: bool
) -> None:
    plan = parts(samples, at_once, share)
    assert sorted(at for part in plan for at in part.rows) == list(range(len(samples)))
    for part in plan:
        assert len(part.rows) == 1 or computed(samples, part) <= at_once
        assert share or part.shared == 0
        for at, head in zip(part.rows, part.head_of, strict=True):
            first = samples[part.heads[head]]
            assert first.ids[: part.shared] == samples[at].ids[: part.shared]
            assert part.shared < samples[at].context
    if share:
        alone = parts(samples, at_once, False)
        cost = [sum(computed(samples, part) for part in each) for each in (plan, alone)]
        assert cost[0] <= 1.2 * cost[1]


def test_a_group_with_one_prompt_computes_it_once() -> None:
    zeros, flags = (0.0,) * 110, (False,) * 100 + (True,) * 10
    ids = tuple(range(100))
    group = [Sample((*ids, *[at] * 10), flags, zeros, zeros, flags, "g") for at in range(8)]
    (part,) = parts(group, 384, True)
    assert (part.shared, part.heads) == (99, (0,))
    assert computed(group, part) == 99 + 8 * 11


@given(batches(), st.integers(1, 20), st.integers(0, 5))
def test_steps_hold_every_row_once_and_no_group_is_parted(
    samples: list[Sample], batch_size: int, seed: int
) -> None:
    found = steps(samples, batch_size, seed)
    assert sorted(at for step in found for at in step) == list(range(len(samples)))
    assert all(found)
    for group in {each.group for each in samples}:
        assert sum(any(samples[at].group == group for at in step) for step in found) == 1
    assert len(found) == len(steps(samples, batch_size, seed + 1))
    assert found == steps(samples, batch_size, seed)


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    zeros, flags = (0.0,) * 3, (False, False, True)
    alone = [Sample((1, 2, 3), flags, zeros, zeros, flags, "") for _ in range(6)]
    assert sorted(map(len, steps(alone, 2, 0))) == [2, 2, 2]
