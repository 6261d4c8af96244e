"""A reward model on a tiny real base: it ranks, it is saved whole, and it scores from afar."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_llama
import pytest

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.records import Message, Row, TrainingJob, TrainingResult
from agentloop.training.scoring import RewardModel

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_llama.make(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return run(job(base, tmp_path_factory.mktemp("trained"), answers(base, 6)))


def answers(base: Path, groups: int, first: int = 0) -> list[Row]:
    """Groups of two good answers and three bad ones, of several lengths."""
    tokenizer = chat_llama.tokenizer_of(base)
    texts = [("yes", True), ("oh yes", True), ("no", False), ("no, no", False), ("never", False)]
    return [
        Row(
            episode=f"ep-{group}-{at}",
            prompt=(Message(role="user", content="Do I?" + "!" * (group % 4)),),
            segments=(chat_llama.ids_of(tokenizer, f"{text}<|im_end|>"),),
            sampled=(True,),
            group=f"group-{group}",
            label=good,
        )
        for group in range(first, first + groups)
        for at, (text, good) in enumerate(texts)
    ]


def job(base: Path, tmp_path: Path, rows: list[Row], **settings: Any) -> TrainingJob:
    dataset = freeze(rows, {}, tmp_path / "datasets")
    given = {"epochs": 12, "batch_size": 2, "learning_rate": 1e-2, "precision": "float32"}
    return TrainingJob(
        method="agentloop.training.reward_model:train",
        base=str(base),
        dataset=str(rows_path(tmp_path / "datasets", dataset)),
        out=str(tmp_path / "out"),
        settings=given | settings,
    )


def run(given: TrainingJob) -> TrainingResult:
    """In this process: torch is loaded once for all tests."""
    from agentloop.training.reward_model import train

    return train(given)


def test_listwise_ranks_answers_it_has_not_seen(base: Path, trained: TrainingResult) -> None:
    assert trained.metrics["last_accuracy"] == 1.0
    assert trained.metrics["last_loss"] < 0.2 < trained.metrics["first_loss"]
    rows = answers(base, 2, first=50)

    async def scores() -> tuple[list[float], list[float], list[float]]:
        async with RewardModel(base, Path(trained.adapter)) as model:
            together = await model.score(rows)
            alone = [(await model.score([row]))[0] for row in rows[:3]]
            with pytest.raises(UsageError, match="no sampled token"):
                await model.score([replace(rows[0], sampled=(False,))])
            return together, alone, await model.score(rows[::-1])

    together, alone, backwards = asyncio.run(scores())
    good = [score for row, score in zip(rows, together, strict=True) if row.label]
    bad = [score for row, score in zip(rows, together, strict=True) if not row.label]
    assert min(good) > max(bad)
    assert together == pytest.approx(backwards[::-1], abs=1e-4)
    assert together[:3] == pytest.approx(alone, abs=1e-4)  # whatever it is padded with


def test_the_last_token_is_scored_even_where_it_is_the_padding(
    base: Path, trained: TrainingResult
) -> None:
    """Every answer ends in the token that this model pads with; the score is read there."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from agentloop.training.reward_model import load

    row = answers(base, 1)[0]
    (score,) = load(str(base), trained.adapter)([row])
    bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModel.from_pretrained(bare, trained.adapter)
    tokenizer = chat_llama.tokenizer_of(base)
    text = "<|im_start|>user\nDo I?<|im_end|>\n<|im_start|>assistant\n"
    ids = [*chat_llama.ids_of(tokenizer, text), *row.segments[0]]
    assert ids[-1] == tokenizer.pad_token_id
    with torch.no_grad():
        hidden = model.get_base_model().model(torch.tensor([ids])).last_hidden_state
        at_each = model.get_base_model().score(hidden)[0, :, 0]
    assert score == pytest.approx(float(at_each[-1]), abs=1e-4)
    assert abs(score - float(at_each[-2])) > 1e-3


def test_low_precision_learns_too(base: Path, tmp_path: Path) -> None:
    result = run(job(base, tmp_path, answers(base, 4), precision="bfloat16", epochs=4))
    assert result.metrics["last_loss"] < result.metrics["first_loss"]


def test_pairs_are_ranked_too(base: Path, tmp_path: Path) -> None:
    two = [row for row in answers(base, 6) if row.episode[-1] in "02"]
    rows = [replace(row, pair=row.group, group="") for row in two]
    result = run(job(base, tmp_path, rows, loss="pairwise"))
    assert result.metrics["last_accuracy"] == 1.0
    with pytest.raises(UsageError, match="no group"):
        run(job(base, tmp_path / "other", rows))
    with pytest.raises(UsageError, match="good and bad"):
        run(job(base, tmp_path / "good", [row for row in answers(base, 2) if row.label]))


def test_lists_stay_whole_in_parts_and_padding_changes_no_score(base: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from agentloop.training import fit, reward_model

    rows = answers(base, 4)
    lists = reward_model.lists(rows, fit.renderer(chat_llama.tokenizer_of(base)), "listwise")
    batch = reward_model.collate(lists, 0)
    width = batch["input_ids"].shape[1]
    for at_once, parts in ((10**6, 1), (11 * width, 2), (1, 4)):
        some = list(reward_model._together(batch, at_once))
        assert len(some) == parts
        assert torch.stack(some).sum(0).tolist() == [1] * len(rows)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    scores = reward_model.scores_of(model, batch["input_ids"], batch["attention_mask"])
    alone = [
        float(reward_model.scores_of(model, torch.tensor([ids]), torch.ones(1, len(ids)).long())[0])
        for one in lists
        for ids in one["ids"]
    ]
    assert scores.tolist() == pytest.approx(alone, abs=1e-4)


def test_a_scorer_that_fails_is_one_typed_error(
    base: Path, trained: TrainingResult, tmp_path: Path
) -> None:
    rows = answers(base, 1)

    async def fails(model: RewardModel, error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            await model.score(rows)
        await model.close()

    async def killed() -> None:
        async with RewardModel(base, Path(trained.adapter)) as model:
            await model.score(rows)
            assert model._process is not None
            model._process.kill()
            await model._process.wait()
            with pytest.raises(TrainingError, match="ended with -9"):
                await model.score(rows)
            assert len(await model.score(rows)) == len(rows)  # and it starts again

    asyncio.run(fails(RewardModel(base, tmp_path / "none"), UsageError, "no reward model"))
    (tmp_path / "empty").mkdir()
    asyncio.run(fails(RewardModel(base, tmp_path / "empty"), TrainingError, "ended with 1"))
    slow = RewardModel(base, Path(trained.adapter), deadline=0.05)
    asyncio.run(fails(slow, TrainingError, r"did not answer within 0\.05 s"))
    asyncio.run(killed())
