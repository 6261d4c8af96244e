"""Stored rows learned from by a toy policy: a trainer's step without its trainer.

In: episodes of a toy as records, then the rows that a recipe cut from them. Out: one optimizer step
by the settings that a job of `replay:train` would have. The decision worth knowing: a toy goes
through the same records, rows and `ReplaySettings` as a language model, so that an experiment on it
fails when the shipped selection, credit, rows or loss do. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentloop.errors import UsageError
from agentloop.records import Episode, Message, Node, Row, Score, Task, ToolCall, Trajectory
from agentloop.training import losses as L
from agentloop.training.replay_rows import sample
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.toy import ToyPolicy


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy was shown, and what it sampled then: ids, their log-probs, a tool's name."""

    shown: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tool: str = ""


def episode(name: str, task: str, turns: Sequence[Turn], reward: float, run: str = "r") -> Episode:
    """A collected, scored episode; right when its reward is 1. `task` and `run` name its group."""
    nodes: list[Node] = []
    for turn in turns:
        parent = len(nodes) - 1 if nodes else None
        if turn.shown:
            nodes.append(
                Node(parent=parent, message=Message(role="user", content=""), token_ids=turn.shown)
            )
        calls = (ToolCall(id=name, name=turn.tool, arguments={}),) if turn.tool else ()
        nodes.append(
            Node(
                parent=len(nodes) - 1,
                message=Message(role="assistant", content="", tool_calls=calls),
                token_ids=turn.ids, logprobs=turn.logprobs, sampled=True,
            )
        )  # fmt: skip
    return Episode(
        id=name, task=Task(id=task, prompt=task), bundle="toy", purpose="collect", run=run, seed=0,
        trajectories=(Trajectory(nodes=tuple(nodes)),),
        score=Score(value=reward, success=reward >= 1.0, source="toy"),
    )  # fmt: skip


def update(
    policy: ToyPolicy, rows: Sequence[Row], settings: ReplaySettings, seed: int = 0
) -> dict[str, float]:
    """One step of `policy` on all `rows`; the loss's statistics. `seed` draws what
    `settings.covariance` silences. Raises `UsageError` for rows that the settings cannot use, or
    settings that only the trainer has (an anchor, an entropy bonus)."""
    if settings.anchor.weight or settings.anchor.first or settings.entropy:
        raise UsageError("a toy has neither anchor nor entropy bonus; leave them out")
    samples = [sample(row, settings) for row in rows]
    tokens = _padded([one.ids for one in samples], torch.long)
    mask = _padded([one.sampled for one in samples], torch.bool)[:, 1:]
    old = _padded([one.old for one in samples], torch.double)[:, 1:]
    advantages = _padded([one.advantages for one in samples], torch.double)[:, 1:]
    own = torch.tensor([one.weight for one in samples]).unsqueeze(1)
    logp = policy.logp(tokens, 1)
    weights = L.weigh(mask, settings.reduction, settings.length) * own
    if settings.covariance is not None:
        weights = weights * _kept(logp.detach(), old, advantages, mask, settings, seed)
    if settings.loss == "negative_aware":
        correct = torch.tensor([one.correct for one in samples])
        share = torch.tensor([one.share for one in samples])
        rule = L.Negatives(**settings.negatives.model_dump())
        loss = L.negative_aware(logp, old, weights, correct, share, rule)
    else:
        clip = _clip(settings)
        loss = L.policy_gradient(logp, old, advantages, weights, clip, settings.level)
    policy.step(loss.value * settings.weight)
    return {name: float(value) for name, value in loss.stats.items()}


def _clip(settings: ReplaySettings) -> L.Clip | L.Cap | None:
    clip = settings.clip
    if clip is None:
        return None
    return L.Clip(clip.low, clip.high) if clip.most is None else L.Cap(clip.most)


def _kept(
    logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, settings: ReplaySettings, seed: int
) -> Tensor:
    """Where the loss stays, as the trainer has it: tokens that the clip silences are not chosen."""
    given, clip, free = settings.covariance, _clip(settings), mask
    assert given is not None
    if isinstance(clip, L.Clip):
        free = mask & ~L.outside((logp - old).exp(), advantages, clip)
    band = L.Band(given.share, given.low, given.high)
    chance = torch.Generator().manual_seed(seed)
    return mask & ~(free & ~L.covariance_clip(logp, advantages, free, band, chance))


def _padded(rows: Sequence[Sequence[float]], kind: torch.dtype) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=kind)
