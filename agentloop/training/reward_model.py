"""A reward model: a scalar head on the base model, and a process that scores rows with it.

In: a job whose rows carry `label` and `pair` or `group`; later, rows to score. Out: a low-rank
adapter that holds the head as well (or full weights), and one number per row, higher for better.
The decision worth knowing: a row is scored at its last token, found by its length and not by a
padding id, because chat models often end their answers with the token that they pad with. Imports
torch: who wants scores asks `agentloop.training.scoring`, which has a process of its own for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from agentloop.errors import UsageError
from agentloop.records import Row, TrainingJob, TrainingResult
from agentloop.training import fit
from agentloop.training.artifact import publish
from agentloop.training.examples import Example, example
from agentloop.training.losses import Loss, listwise, pair_logistic
from agentloop.training.preference_rows import labelled, pairs, refuse_empty
from agentloop.training.preference_settings import RewardSettings
from agentloop.training.rows_trainer import Bucketed
from agentloop.training.settings import settings_of
from agentloop.trajectories.rows_file import read_rows

Batch = dict[str, Tensor]


def train(job: TrainingJob) -> TrainingResult:
    """Rank the good rows of each pair or group above its bad ones.

    Raises `UsageError` on wrong settings or rows, `TrainingError` when a guard trips; then nothing
    is written.
    """
    settings = settings_of(RewardSettings, job.settings)
    started = time.perf_counter()
    torch.manual_seed(job.seed)
    tokenizer = fit.tokenizer_of(job.base)
    found = lists(read_rows(Path(job.dataset)), fit.renderer(tokenizer), settings.loss)
    kept = [one for one in found if max(map(len, one["ids"])) <= settings.max_length]
    refuse_empty(kept, settings.max_length)
    with TemporaryDirectory(prefix="agentloop-reward-") as scratch:
        trainer = ListTrainer(
            model=fit.start_model(job, AutoModelForSequenceClassification, num_labels=1),
            args=fit.arguments(RewardConfig, job, settings, scratch, max_length=None),
            train_dataset=Dataset.from_list(kept),
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
            peft_config=fit.lora(job, settings, "SEQ_CLS"),
        )
        trainer.at_once = fit.at_once(settings)
        watch = fit.Watch(settings.guards, _figures)
        metrics = fit.fit(trainer, watch)
    return publish(
        job,
        lambda directory: fit.save(trainer.model, directory),
        metrics=metrics
        | {
            "last_accuracy": watch.last["accuracy"],
            "lists": float(len(kept)),
            "lists_too_long": float(len(found) - len(kept)),
        },
        seconds=time.perf_counter() - started,
    )


def _figures(logs: Mapping[str, float]) -> dict[str, float]:
    return {name: float(logs[name]) for name in ("loss", "grad_norm", "accuracy") if name in logs}


def lists(rows: Sequence[Row], render: fit.Render, loss: str) -> list[dict[str, Any]]:
    """Columns `ids` (rows of a list), `good` and `length`: one list per pair, or per group that has
    rows of both kinds. Raises `UsageError` for rows without a label, a pair or a group, and when
    no group has both kinds."""
    grouped: dict[str, list[tuple[Example, bool]]] = {}
    if loss == "pairwise":
        for number, pair in enumerate(pairs(rows, render)):
            grouped[str(number)] = [(pair.good, True), (pair.bad, False)]
    else:
        for row in rows:
            if not row.group:
                raise UsageError(f"a row of episode `{row.episode}` names no group to be ranked in")
            grouped.setdefault(row.group, []).append((example(row, render), labelled(row)))
    both = [one for one in grouped.values() if len({good for _, good in one}) == 2]
    if not both:
        raise UsageError("no group has good and bad rows; a reward model learns from their order")
    return [
        {
            "ids": [row.input_ids for row, _ in one],
            "good": [good for _, good in one],
            "length": max(len(row.input_ids) for row, _ in one) * len(one),
        }
        for one in both
    ]


def collate(batch: Sequence[Mapping[str, Any]], pad: int) -> Batch:
    """All rows of all lists, right-padded (rows x time); `list` numbers the list of each."""
    ids = [row for one in batch for row in one["ids"]]
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "good": torch.tensor([good for one in batch for good in one["good"]]),
        "list": torch.tensor([at for at, one in enumerate(batch) for _ in one["ids"]]),
    }


class ListTrainer(RewardTrainer):  # type: ignore[misc]
    """`RewardTrainer` on lists of rows; `tokens` counts what the rows seen so far hold."""

    tokens = 0
    at_once = 384

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # they are tokens already

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        lengths = list(self.train_dataset["length"])
        return Bucketed(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Gradient of the mean loss over the lists of a batch, some lists at a time."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        self.tokens += int(inputs["attention_mask"].sum())
        n = int(inputs["list"].max()) + 1
        losses = []
        for some in _together(inputs, self.at_once):
            part = {name: tensor[some] for name, tensor in inputs.items()}
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * len(part["list"].unique()) / n
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Mean over the lists of the mean over their good x bad pairs."""
        with self.accelerator.autocast():  # only the whole model's own forward has it
            scores = scores_of(model, inputs["input_ids"], inputs["attention_mask"])
        each = [
            _ranking(scores[inputs["list"] == one], inputs["good"][inputs["list"] == one])
            for one in inputs["list"].unique()
        ]
        metrics = self._metrics["train"]
        metrics["accuracy"].append(sum(float(loss.stats["accuracy"]) for loss in each) / len(each))
        return torch.stack([loss.value for loss in each]).mean()


def _ranking(scores: Tensor, good: Tensor) -> Loss:
    """The loss of one list; with one row of each kind both forms are the same."""
    if len(scores) == 2:
        return pair_logistic(scores[good], scores[~good])
    return listwise(scores, good)


def _together(batch: Batch, at_once: int) -> Iterator[Tensor]:
    """Rows of consecutive lists with at most `at_once` padded tokens, at least one list each."""
    width, lists_of = batch["input_ids"].shape[1], batch["list"]
    sizes = lists_of.bincount().tolist()
    first = rows = 0
    for at, size in enumerate([*sizes, 0]):
        if at == len(sizes) or (rows and (rows + size) * width > at_once):
            yield (lists_of >= first) & (lists_of < at)
            first, rows = at, 0
        rows += size


def scores_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """One score per row (rows), read at the last token of each right-padded row."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = bare.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = mask.sum(dim=1) - 1
    return bare.score(hidden[torch.arange(len(ids), device=ids.device), last])[:, 0].float()


# --- scoring --------------------------------------------------------------------------------------


def load(base: str, adapter: str) -> Callable[[Sequence[Row]], list[float]]:
    """The scores of rows under the reward model in `adapter`, computed in batches of like length.

    A row's `prompt` is rendered as in training. Raises `UsageError` on malformed rows.
    """
    job = TrainingJob(method="", base=base, dataset="", out="", adapter=adapter)
    kind = AutoModelForSequenceClassification
    model = fit.load(job, kind, torch.float32, num_labels=1).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    tokenizer = fit.tokenizer_of(base)
    render, most = fit.renderer(tokenizer), 16384 if device.type == "cuda" else 1024

    def score(rows: Sequence[Row]) -> list[float]:
        ids = [example(row, render).input_ids for row in rows]
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
        found = [0.0] * len(ids)
        while order:
            some = order[: max(1, most // len(ids[order[0]]))]
            batch = collate([{"ids": [ids[at] for at in some], "good": [False] * len(some)}], 0)
            with torch.inference_mode():
                values = scores_of(
                    model, batch["input_ids"].to(device), batch["attention_mask"].to(device)
                )
            for at, value in zip(some, values.tolist(), strict=True):
                found[at] = value
            del order[: len(some)]
        return found

    return score
