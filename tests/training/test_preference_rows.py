"""Pairs and labelled rows to batches: every token in its place, and seen by its own row alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("trl")

import torch

from agentloop.errors import UnknownName, UsageError
from agentloop.records import Message, Row
from agentloop.training.examples import IGNORED, Example
from agentloop.training.logprobs import apart, together
from agentloop.training.preference_rows import (
    collate_pairs,
    collate_singles,
    labelled,
    pairs,
    singles,
)
from agentloop.training.preference_settings import DPOSettings, KTOSettings
from agentloop.training.settings import settings_of

PROMPT = (7, 7, 7, 8)


def render(messages: tuple[Message, ...]) -> tuple[int, ...]:
    return PROMPT


def row(name: str, label: bool | None, ids: tuple[int, ...], **fields: object) -> Row:
    given: dict[str, object] = {"prompt": (Message(role="user", content="q"),), "pair": name}
    return Row(
        episode=f"ep-{name}", segments=(ids, (9,), ids), sampled=(True, False, True), label=label,
        **(given | fields),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_pair_keeps_its_tokens_and_its_masks() -> None:
    (pair,) = pairs([row("a", False, (3, 4)), row("a", True, (5,))], render)
    labels = (*[IGNORED] * 4, 5, IGNORED, 5)
    assert pair.good == Example(input_ids=(*PROMPT, 5, 9, 5), labels=labels)
    assert pair.bad.input_ids == (*PROMPT, 3, 4, 9, 3, 4)
    assert pair.length == 9
    assert pair.columns()["length"] == 7 + 9 - 4  # the prompt is computed once


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("", True, (1,))], "names no pair"),
        ([row("a", True, (1,))], "`a` has one row"),
        ([row("a", True, (1,)), row("a", True, (2,))], "two rows with the label True"),
        ([row("a", None, (1,)), row("a", True, (2,))], "has no label"),
        ([row("a", True, (1,), weight=0.5), row("a", False, (2,))], "preferences weigh 1"),
    ],
)
def test_what_is_no_pair_is_refused(rows: list[Row], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pairs(rows, render)


def test_settings_name_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean `beta`"):
        settings_of(DPOSettings, {"beat": 0.1})
    with pytest.raises(UsageError, match="batch_size"):
        settings_of(KTOSettings, {"batch_size": 1})
    with pytest.raises(UsageError, match="loss"):
        settings_of(DPOSettings, {"loss": "logistic"})


def test_a_mismatched_row_has_its_own_prompt_and_the_answer_of_another() -> None:
    def made(prompt: int, answer: int) -> Example:
        ids = (prompt, prompt, answer, answer)
        return Example(input_ids=ids, labels=(IGNORED, IGNORED, *ids[2:]))

    rows = [made(1, 2), made(1, 3), made(4, 5)]
    columns = singles([(one, at > 0) for at, one in enumerate(rows)])
    for column in columns:
        prompt, answer = column["ids"][0], column["kl_ids"][2]
        assert column["kl_ids"][:2] == (prompt, prompt)
        assert answer in ({5} if prompt == 1 else {2, 3})
        assert column["kl_labels"] == (IGNORED, IGNORED, answer, answer)
    batch = collate_singles(columns, pad=0)
    assert batch["input_ids"].shape == batch["KL_completion_mask"].shape == (3, 4)
    assert sorted(batch["label"].tolist()) == [False, True, True]


ROW = st.tuples(
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ROW, ROW), min_size=1, max_size=3), st.booleans())
def test_every_label_is_predicted_from_its_own_row_alone(
    drawn: list[tuple[tuple[list[int], list[tuple[int, bool]]], ...]], alike: bool
) -> None:
    """The attended tokens of a packed position, in order, are the beginning of its row: so the
    packed pass computes what a pass over the row alone computes."""
    rows = []
    for good, bad in drawn:
        for prompt, rest in (good, (good[0] if alike else bad[0], bad[1])):
            rest = [*rest, (1, True)]
            ids = [*prompt, *(token for token, _ in rest)]
            labels = [*[IGNORED] * len(prompt), *(t if sampled else IGNORED for t, sampled in rest)]
            rows.append((ids, labels))
    batch = collate_pairs(
        [
            {"good_ids": one[0], "good_labels": one[1], "bad_ids": two[0], "bad_labels": two[1],
             "length": 0}
            for one, two in zip(rows[::2], rows[1::2], strict=True)
        ],
        pad=0,
    )  # fmt: skip
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = ids.masked_fill(batch["completion_mask"] == 0, IGNORED)
    layout = together(ids, mask, labels)
    packed = labels[layout.row, layout.at].masked_fill(~layout.valid, IGNORED)
    predicted = []
    for sequence, place in (packed[:, 1:] != IGNORED).nonzero().tolist():
        source, at = int(layout.row[sequence, place + 1]), int(layout.at[sequence, place + 1])
        predicted.append((source, at))
        assert int(layout.at[sequence, place]) == at - 1
        seen = layout.mask[sequence, 0, place].nonzero()[:, 0]
        places = layout.at[sequence, seen]
        assert places.tolist() == list(range(at))
        assert torch.equal(ids[layout.row[sequence, seen], places], ids[source, :at])
    assert sorted(predicted) == [tuple(one) for one in (labels[:, 1:] != IGNORED).nonzero()
                                 .add(torch.tensor([0, 1])).tolist()]  # fmt: skip
    plain = apart(mask)
    assert torch.equal(ids[plain.row, plain.at], ids) and torch.equal(plain.mask, mask)


def test_a_label_alone_is_enough_without_pairs() -> None:
    assert labelled(row("", True, (1,))) is True
