"""Stored rows learned from by a toy policy: a trainer's step without its trainer.

In: episodes of a toy as records and the rows that a recipe cut from them, or where records would
be all the time it takes, tensors. Out: one optimizer step by the settings that a job of
`replay:train` would have. The decision worth knowing: a toy goes through the same tensors, anchor
and loss as a language model (with rows, through the same records too), so that an experiment on it
fails when the shipped selection, credit, rows or loss do. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentloop.errors import UsageError
from agentloop.records import Episode, Message, Node, Row, Score, Task, ToolCall, Trajectory
from agentloop.training.anchors import Anchor
from agentloop.training.losses import token_entropy, weigh
from agentloop.training.replay_rows import sample
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.replay_tensors import (
    Means,
    Tokens,
    fined,
    held,
    part_loss,
    silenced,
    tensors,
)
from agentloop.training.toy import ToyPolicy, chosen


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
    policy: ToyPolicy,
    rows: Sequence[Row],
    settings: ReplaySettings,
    seed: int = 0,
    anchor: Anchor | None = None,
) -> dict[str, float]:
    """One step of `policy` on all `rows`; see `learn`. Raises `UsageError` also for rows that the
    settings cannot use."""
    samples = [sample(row, settings) for row in rows]
    tokens = tensors(samples, settings, torch.double, torch.device("cpu"))
    return learn(policy, tokens, settings, seed=seed, anchor=anchor)


def aligned(
    ids: Tensor,
    old: Tensor,
    advantages: Tensor,
    settings: ReplaySettings,
    *,
    sampled: Tensor | None = None,
    first: Tensor | None = None,
) -> Tokens:
    """A step that is tensors already: `ids` (rows x 1 + time), everything else (rows x time), of
    the tokens after the first; `sampled` (default all) and `first` (default none) are bool."""
    mask = torch.ones_like(old, dtype=torch.bool) if sampled is None else sampled
    early = torch.zeros_like(mask) if first is None else first

    def whole(values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values[:, :1]), values], dim=1)

    mask, zeros = whole(mask), torch.zeros_like(whole(old))
    return Tokens(
        ids=ids, mask=mask, old=whole(old), advantages=whole(advantages.to(old.dtype)),
        first=whole(early), weights=weigh(mask, settings.reduction, settings.length).to(old.dtype),
        correct=torch.zeros_like(mask), share=zeros, ref=zeros, kept=mask,
    )  # fmt: skip


def learn(
    policy: ToyPolicy,
    tokens: Tokens,
    settings: ReplaySettings,
    *,
    seed: int = 0,
    anchor: Anchor | None = None,
) -> dict[str, float]:
    """One step of `policy` by the trainer's own loss; its statistics, `kl` and `entropy` included.

    `seed` draws what `settings.covariance` silences; `anchor` is what `settings.anchor` holds the
    policy to, and follows it afterwards. Raises `UsageError` when one is needed and not given.
    """
    if held(settings) and anchor is None:
        raise UsageError("the settings hold the policy to an anchor; give one")
    ids, rows = tokens.ids, range(len(tokens.ids))
    if held(settings) and anchor is not None:
        with torch.no_grad(), anchor.in_place():
            ref = policy.logp(ids, 1)
        tokens = tokens.replaced(ref=torch.cat([torch.zeros_like(ref[:, :1]), ref], dim=1))
    tokens = tokens.part(rows, 1, ids.shape[1])  # the first is not predicted
    logits = policy.logits(ids, 1)
    logp = chosen(logits, tokens.ids)
    entropy = torch.where(tokens.mask, token_entropy(logits), torch.zeros_like(logp))
    if settings.anchor.estimator == "centred":
        tokens = fined(logp.detach(), tokens, settings.anchor.weight)
    tokens, stats = silenced(logp.detach(), tokens, settings, seed), Means()
    policy.step(
        part_loss(logp, entropy, tokens, settings=settings, whole=tokens.mask.sum(), stats=stats)
    )
    if anchor is not None:
        anchor.follow()
    return stats.means()
