"""Stored rows learned from by a toy policy: a trainer's step without its trainer.

In: episodes of a toy as records, then the rows that a recipe cut from them. Out: one optimizer step
by the settings that a job of `replay:train` would have. The decision worth knowing: a toy goes
through the same records, rows, tensors and loss as a language model, so that an experiment on it
fails when the shipped selection, credit, rows or loss do. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentloop.errors import UsageError
from agentloop.records import Episode, Message, Node, Row, Score, Task, ToolCall, Trajectory
from agentloop.training.replay_rows import sample
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.replay_tensors import policy_loss, silenced, tensors
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
    whole = tensors(samples, settings, torch.double, torch.device("cpu"))
    tokens = whole.part(range(len(samples)), 1, whole.ids.shape[1])  # the first is not predicted
    logp = policy.logp(whole.ids, 1)
    tokens = silenced(logp.detach(), tokens, settings, seed)
    loss = policy_loss(logp, tokens, tokens.weights * tokens.kept, settings)
    policy.step(loss.value * settings.weight)
    return {name: float(value) for name, value in loss.stats.items()}
