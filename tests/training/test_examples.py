"""Labels lie exactly on sampled tokens; batches hold like lengths and lose no row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.records import Message, Row
from agentloop.training.examples import IGNORED, example, fitting, length_bucketed

ROW = Row(
    episode="ep",
    prompt=(Message(role="user", content="hi"),),
    segments=((10, 11), (20, 21, 22), (30,)),
    sampled=(True, False, True),
)


def render(messages: tuple[Message, ...]) -> list[int]:
    return [1, 2, 3]


def test_labels_lie_on_the_sampled_tokens_and_nowhere_else() -> None:
    made = example(replace(ROW, weight=0.5), render)
    assert made.input_ids == (1, 2, 3, 10, 11, 20, 21, 22, 30)
    assert made.labels == (*[IGNORED] * 3, 10, 11, *[IGNORED] * 3, 30)
    assert made.weight == 0.5


def test_without_a_prompt_the_segments_are_all() -> None:
    made = example(replace(ROW, prompt=()), render)
    assert made.input_ids == (10, 11, 20, 21, 22, 30)


@pytest.mark.parametrize(
    "broken",
    [
        replace(ROW, sampled=(True, False)),
        replace(ROW, sampled=(False, False, False)),
        replace(ROW, segments=((), (20,), ())),
        replace(ROW, logprobs=((-0.1, -0.1),)),
        replace(ROW, weight=0.0),
        replace(ROW, weight=float("nan")),
    ],
)
def test_a_malformed_row_is_refused(broken: Row) -> None:
    with pytest.raises(UsageError, match="episode `ep`"):
        example(broken, render)


def test_long_rows_are_left_out_whole() -> None:
    made = example(ROW, render)
    assert fitting([made, made], 9) == [made, made]
    with pytest.raises(UsageError, match="max_length"):
        fitting([made], 8)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_an_order_is_a_permutation_with_little_padding(
    lengths: list[int], size: int, seed: int
) -> None:
    order = length_bucketed(lengths, size, seed)
    assert sorted(order) == list(range(len(lengths)))
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    # Sorted runs overlap in their ends only, but for the incomplete batch that was cut out.
    assert sum(spread) <= 2 * (max(lengths, default=0) - min(lengths, default=0))


def test_epochs_differ_and_seeds_repeat() -> None:
    lengths = [5, 5, 5, 5, 9, 9, 9, 9, 30, 31, 32]
    assert length_bucketed(lengths, 2, 1) == length_bucketed(lengths, 2, 1)
    assert len({tuple(length_bucketed(lengths, 2, seed)) for seed in range(8)}) > 4
