"""The gradient of replay is TRL's where both are right, and the analytic one where TRL's is not.

TRL's own `_compute_loss` makes the gradient it is compared with: its trainer is given the stored
rows by a rollout function. Nothing of ours is on that side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_llama import TEMPERATURE, llama, log_probs, prompts, rows, words
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from agentloop.records import Row
from agentloop.training.projection import Projection
from agentloop.training.replay import ReplayTrainer
from agentloop.training.replay_rows import parts, sample
from agentloop.training.replay_settings import ReplaySettings

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]
EPISODES = {"groups": 2, "size": 4}
DTYPES = {torch.float32: 1e-4, torch.float64: 1e-9}
PLAIN = ReplaySettings(clip=None)


class Exact(GRPOTrainer):  # type: ignore[misc]
    """TRL's head computes in float32 whatever the model's precision; this one does not. The loss,
    its masks, its advantages and its normaliser stay TRL's."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any
    ) -> Any:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        logp = (logits[:, -logits_to_keep:] / self.temperature).log_softmax(-1)
        chosen = logp.gather(-1, input_ids[:, -logits_to_keep:, None]).squeeze(-1)
        return chosen, -(logp.exp() * logp).sum(-1).detach(), None


class Gradient(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.kept is None:
            self.kept = flat(one.grad for one in given["model"].parameters())


def flat(tensors: Any) -> Tensor:
    return torch.cat([one.detach().double().flatten() for one in tensors])


def off(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((found - expected).norm() / expected.norm())


def config(path: Path, loss: str, steps: int, clip: float = 1e9) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(path), per_device_train_batch_size=8, num_generations=4, max_steps=steps,
        learning_rate=1e-3, lr_scheduler_type="constant", max_grad_norm=clip, use_cpu=True,
        bf16=False, gradient_checkpointing=False, disable_dropout=True, beta=0.0, loss_type=loss,
        scale_rewards="none", temperature=TEMPERATURE, max_completion_length=32, epsilon_high=0.28,
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, seed=3,
    )  # fmt: skip


Rollouts = Callable[[Any], Sequence[Row]]


def trl(
    path: Path, model: Any, draw: Rollouts, *, loss: str = "dapo", steps: int = 1, clip: float = 1e9
) -> tuple[Tensor, list[Sequence[Row]]]:
    """Train TRL's trainer on what `draw` gives; the first gradient, and the rows of each step."""
    drawn: list[Sequence[Row]] = []

    def rollout(given: list[str], trainer: Any) -> dict[str, Any]:
        drawn.append(draw(trainer.model))
        left = {str(at): [row for row in drawn[-1] if row.group == f"g{at}"] for at in range(2)}
        found = [left[prompt].pop(0) for prompt in given]
        cut = [len(row.segments[0]) for row in found]
        ids = [[token for part in row.segments for token in part] for row in found]
        flags = [
            [flag for part, flag in zip(row.segments, row.sampled, strict=True) for _ in part]
            for row in found
        ]
        old = [
            [value for part, kept in zip(row.segments, row.logprobs, strict=True)
             for value in (kept or [0.0] * len(part))]
            for row in found
        ]  # fmt: skip
        pairs = list(zip(ids, cut, strict=True))
        return {
            "prompt_ids": [each[:at] for each, at in pairs],
            "completion_ids": [each[at:] for each, at in pairs],
            "logprobs": [each[at:] for each, at in zip(old, cut, strict=True)],
            "env_mask": [[int(x) for x in each[at:]] for each, at in zip(flags, cut, strict=True)],
            "value": [row.reward for row in found],
        }

    kept = Gradient()
    kind = Exact if model.dtype == torch.float64 else GRPOTrainer
    kind(
        model=model,
        reward_funcs=lambda value, **_: value,
        args=config(path, loss, steps, clip),
        train_dataset=Dataset.from_dict({"prompt": ["0", "1"]}),
        processing_class=words(),
        callbacks=[kept],
        rollout_func=rollout,
    ).train()
    assert kept.kept is not None
    return kept.kept, drawn


class Next(TrainerCallback):  # type: ignore[misc]
    """Gives the trainer the rows of its step."""

    def __init__(self, drawn: Sequence[Sequence[Row]], settings: ReplaySettings) -> None:
        self.drawn, self.settings, self.trainer = drawn, settings, None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer: Any = self.trainer
        trainer.samples = [sample(row, self.settings) for row in self.drawn[state.global_step]]


def ours(
    path: Path, model: Any, drawn: Sequence[Sequence[Row]], settings: ReplaySettings,
    *, clip: float = 1e9,
) -> tuple[Tensor, ReplayTrainer]:  # fmt: skip
    """Replay the rows of each step; the first gradient."""
    kept, then = Gradient(), Next(drawn, settings)
    trainer = ReplayTrainer(
        [sample(row, settings) for row in drawn[0]],
        settings.model_copy(update={"batch_size": 8}),
        model=model,
        args=config(path, "dapo", len(drawn), clip),
        processing_class=words(),
        callbacks=[kept, then],
    )
    then.trainer = trainer  # type: ignore[assignment]
    trainer.train()
    assert kept.kept is not None
    return kept.kept, trainer


def analytic(model: Any, given: Sequence[Row]) -> Tensor:
    """The importance-weighted gradient of the mean over sampled tokens, by the plain formula."""
    total, count = torch.zeros((), dtype=model.dtype), 0
    for row in given:
        ids = [token for part in row.segments for token in part]
        logp, place = log_probs(model, ids), 0
        for at, part in enumerate(row.segments):
            if row.sampled[at]:
                now = logp[place - 1 : place - 1 + len(part)]
                ratio = (now - torch.tensor(row.logprobs[at], dtype=now.dtype)).exp()
                total = total - (ratio * row.advantages[at]).sum()
                count += len(part)
            place += len(part)
    return flat(torch.autograd.grad(total / count, list(model.parameters())))


REDUCTIONS = [("dapo", "token", 1.0), ("grpo", "sequence", 1.0), ("dr_grpo", "constant", 32.0)]


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
@pytest.mark.parametrize(("loss", "reduction", "length"), REDUCTIONS)
def test_on_policy_the_gradient_is_trls(
    tmp_path: Path, dtype: torch.dtype, loss: str, reduction: str, length: float
) -> None:
    theirs, drawn = trl(tmp_path, llama(dtype), lambda policy: rows(policy, **EPISODES), loss=loss)
    settings = ReplaySettings.model_validate({"reduction": reduction, "length": length})
    found, trainer = ours(tmp_path, llama(dtype), drawn, settings)
    distance = off(found, theirs)
    print(f"{loss} {dtype}: relative L2 {distance:.2e}")
    assert distance <= DTYPES[dtype]
    assert trainer.first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert trainer.first["clip_share"] == 0


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_twenty_steps_change_the_weights_alike(tmp_path: Path, dtype: torch.dtype) -> None:
    """Replaying what TRL's policy sampled at each of its steps, with its log-probs of then."""
    start, one, other = flat(llama(dtype).parameters()), llama(dtype), llama(dtype)
    count = iter(range(100))
    _, drawn = trl(
        tmp_path, one, lambda policy: rows(policy, **EPISODES, seed=next(count)), steps=20, clip=1.0
    )
    ours(tmp_path, other, drawn, ReplaySettings(), clip=1.0)
    change = flat(one.parameters()) - start
    distance = off(flat(other.parameters()) - start, change)
    print(f"20 steps {dtype}: {distance:.2e} of a change of {float(change.norm()):.3f}")
    assert distance <= 1e-3


def flip_advantage(row: Row) -> Row:
    return replace(row, advantages=tuple(-one for one in row.advantages))


def hide_segment(row: Row) -> Row:
    last = max(at for at, flag in enumerate(row.sampled) if flag)
    flags = tuple(flag and at != last for at, flag in enumerate(row.sampled))
    return replace(row, sampled=flags)


def show_tool(row: Row) -> Row:
    place = row.sampled.index(False, row.sampled.index(True))
    old = tuple(
        (-1.0,) * len(part) if at == place else row.logprobs[at]
        for at, part in enumerate(row.segments)
    )
    worth = tuple(0.5 if at == place else one for at, one in enumerate(row.advantages))
    flags = tuple(flag or at == place for at, flag in enumerate(row.sampled))
    return replace(row, sampled=flags, logprobs=old, advantages=worth)


@pytest.mark.parametrize(
    ("alter", "settings"),
    [
        (flip_advantage, {}),
        (hide_segment, {}),
        (show_tool, {}),
        (None, {"reduction": "sequence"}),
        (None, {"reduction": "sum", "length": 100}),
    ],
    ids=["advantage", "mask", "tool", "normaliser", "scale"],
)
def test_an_altered_row_or_normaliser_is_seen(
    tmp_path: Path, alter: Callable[[Row], Row] | None, settings: dict[str, Any]
) -> None:
    """One advantage's sign, one segment's mask, one tool answer, the normaliser."""
    theirs, drawn = trl(tmp_path, llama(), lambda policy: rows(policy, **EPISODES))
    changed = list(drawn[0])
    if alter is not None:
        changed[0] = alter(changed[0])
    found, _ = ours(tmp_path, llama(), [changed], ReplaySettings.model_validate(settings))
    print(f"altered: relative L2 {off(found, theirs):.2e}")
    assert off(found, theirs) > 1e-2


def stale(dtype: torch.dtype, rate: float = 1e-2, step: int = 5) -> tuple[Any, list[Row]]:
    """A policy, and rows that it sampled ten updates ago."""
    model = llama(dtype)
    given = rows(model, **EPISODES, step=step)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(10):
        gradient, at = analytic(model, given), 0
        for weight in model.parameters():
            weight.grad = gradient[at : at + weight.numel()].view_as(weight).to(dtype)
            at += weight.numel()
        optimizer.step()
    return model, given


@pytest.mark.parametrize("rate", [2e-3, 1e-2])
@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_stale_rows_are_weighted_by_their_true_ratios(
    tmp_path: Path, dtype: torch.dtype, rate: float
) -> None:
    model, given = stale(dtype, rate)
    expected = analytic(model, given)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    found, trainer = ours(tmp_path, model, [given], PLAIN)
    model.load_state_dict(weights)
    theirs, _ = trl(tmp_path, model, lambda _: given)
    distance, unweighted = off(found, expected), off(theirs, expected)
    ratio = trainer.first["abs_log_ratio"]
    print(f"stale {dtype} {rate:g}: {distance:.2e}, TRL {unweighted:.2f}, |log ratio| {ratio:.2f}")
    assert distance <= 1e-4
    assert unweighted >= 1e-1


VARIANTS: list[dict[str, Any]] = [
    {"tokens_at_once": 30},
    {"tokens_at_once": 70},
    {"share_prefix": False},
    {"share_prefix": False, "tokens_at_once": 1},
]
LOSSES: list[dict[str, Any]] = [
    {},
    {"level": "sequence", "reduction": "sequence"},
    {"clip": {"most": 1.5}, "reduction": "constant", "length": 9},
    {"loss": "negative_aware", "reduction": "sum", "length": 100},
    {"entropy": 0.1, "anchor": {"to": "start", "weight": 0.5}},
    {"anchor": {"to": "ema", "first": 0.5, "keep": 0.5, "estimator": "k2"}},
    {"anchor": {"to": "ema", "weight": 0.5, "keep": 0.5, "estimator": "centred"}},
    {"covariance": {"share": 0.2, "low": -9, "high": 9}, "stale": 0.05, "weight": 0.5},
]


@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: "+".join(map(str, loss.values())) or "clip"
)
def test_parts_and_shared_beginnings_leave_the_gradient_as_it_is(
    tmp_path: Path, loss: dict[str, Any]
) -> None:
    model, given = stale(torch.float64, step=1)  # so near that the groups share one pass
    samples = [sample(row, ReplaySettings()) for row in given]
    (whole,) = parts(samples, 384, True)
    assert (len(whole.heads), whole.shared) == (2, 18)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    start, ends = flat(model.parameters()), []
    for variant in ({}, *VARIANTS):
        model.load_state_dict(weights)
        settings = ReplaySettings.model_validate({**loss, **variant})
        ours(tmp_path, model, [given] * 3, settings)
        ends.append(flat(model.parameters()) - start)
    assert float(ends[0].norm()) > 0
    assert max(off(other, ends[0]) for other in ends[1:]) <= 1e-7


@pytest.mark.parametrize("bonus", [False, True])
def test_a_tiled_projection_gives_what_a_whole_one_gives(bonus: bool) -> None:
    model, ids = llama(), torch.tensor(prompts(1) * 3)
    where = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    found = []
    for tiled in (False, True):
        project = Projection(model, TEMPERATURE, tiled=tiled)
        logp, entropy = project({"input_ids": ids}, where, ids[where], bonus=bonus)
        assert entropy.requires_grad == bonus
        total = logp.square().sum() + (entropy.sum() if bonus else 0)
        gradient = flat(torch.autograd.grad(total, list(model.parameters())))
        found.append(torch.cat([logp.detach().double(), entropy.detach().double(), gradient]))
    assert off(found[1], found[0]) <= 1e-5


def test_an_adapter_on_the_head_counts_and_learns() -> None:
    ids = torch.tensor(prompts(1) * 3)
    where = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(llama(), config)
    weights = [one for one in model.parameters() if one.requires_grad]
    found = []
    for tiled in (False, True):
        project = Projection(model.get_base_model(), TEMPERATURE, tiled=tiled)
        logp, _ = project({"input_ids": ids}, where, ids[where], bonus=False)
        found.append(flat([logp, *torch.autograd.grad(logp.square().sum(), weights)]))
    with model.disable_adapter(), torch.no_grad():
        bare, _ = Projection(model.get_base_model(), TEMPERATURE, tiled=True)(
            {"input_ids": ids}, where, ids[where], bonus=False
        )
    assert off(found[1], found[0]) <= 1e-5
    assert off(found[1][: len(bare)], bare) > 1e-2


def test_what_was_not_sampled_gets_no_gradient(tmp_path: Path) -> None:
    model, given = llama(torch.float64), rows(llama(), **EPISODES)
    seen: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[0]))
    quiet = [
        replace(row, advantages=tuple(0.0 if flag else 1e3 for flag in row.sampled))
        for row in given
    ]
    found, _ = ours(tmp_path, model, [quiet], PLAIN)
    assert not found.any()
    sampled = sum(
        len(part)
        for row in given
        for part, flag in zip(row.segments, row.sampled, strict=True)
        if flag
    )
    assert sum(seen) == sampled
    assert len({len(prompt) for prompt in prompts(2)}) == 2
