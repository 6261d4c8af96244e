"""What happened: an order for a rollout, its trajectories, its score."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property

from agentloop.records.base import Json, Purpose, Reason, content_id, record
from agentloop.records.exchange import Message, Sampling, Task, Usage


@record
class Node:
    """One message of a trajectory, stored once, with only the tokens that it added."""

    parent: int | None
    """Index of the node before it, `None` at a root."""
    message: Message
    token_ids: tuple[int, ...] = ()
    """Ids this message added to its context; those of unsampled messages between two samples are
    carried by the last of them (template tokens included)."""
    sampled: bool = False
    logprobs: tuple[float, ...] | None = None
    policy: str | None = None
    """The policy version that sampled it."""
    sampling: Sampling | None = None
    finish_reason: str | None = None
    fallback: str = ""
    """The spec of the model that stood in for the one that was asked; empty when it replied."""


@record
class Trajectory:
    """A message graph of one role; a branch (root to leaf) is one training row."""

    role: str = "agent"
    trainable: bool = True
    nodes: tuple[Node, ...] = ()
    drift: int = 0
    """How many prompts did not continue the tokens of the one before (a fork)."""
    clean: int = 0
    """How many continued them as they were."""
    realigned: int = 0
    """How many did once a reply's white space was put back (see `trajectories.recorder`)."""
    redacted: bool = False
    """A secret was found in its text: ids and log-probs, which spell it, were taken out, and it is
    not trained on."""


@record
class Score:
    """A reward: `value` in [0, 1] and finite; `source` is the reference of the grader."""

    value: float
    success: bool
    source: str
    feedback: str = ""
    """What a learner may read about the answer (never shown to the policy)."""
    parts: dict[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()


@record
class Failure:
    """Why a rollout did not finish."""

    reason: Reason
    detail: str


@record
class Episode:
    """One rollout of one task under one bundle."""

    id: str
    task: Task
    bundle: str
    purpose: Purpose
    run: str
    """The run or cycle that made it."""
    seed: int
    sample: int = 0
    """Which of the samples of this task (a group shares run, task and bundle)."""
    trajectories: tuple[Trajectory, ...] = ()
    answer: str | None = None
    failure: Failure | None = None
    score: Score | None = None
    usage: Usage = Usage()
    started: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0
    skills: tuple[str, ...] = ()
    """Ids of the skills shown to the model."""
    state: dict[str, Json] = field(default_factory=dict)
    """The last snapshot of the task's world, for the grader alone; empty without a world."""

    @property
    def success(self) -> bool:
        """Scored, and right."""
        return self.score is not None and self.score.success


@dataclass(frozen=True, kw_only=True)  # without slots, so that its id is hashed once
class Attempt:
    """An order for one rollout: everything that decides what the model will see."""

    task: Task
    bundle: str
    system: str
    """The composed system text: instruction, skills, lent examples; empty for none."""
    sampling: Sampling
    purpose: Purpose
    run: str
    sample: int = 0
    policy: str | None = None
    skills: tuple[str, ...] = ()
    subject: str = ""
    """Tells two attempts apart that differ in nothing else (a lane's trial, a stage)."""
    history: tuple[Message, ...] = ()
    """What was said before the task, when that is a turn of a conversation."""

    @cached_property
    def id(self) -> str:
        """The episode's id: equal orders have equal ids, so a repeated one is found, not paid."""
        earlier = [[asdict(message) for message in self.history]] if self.history else []
        return content_id(
            "ep", self.run, self.subject, self.task.id, self.bundle, self.system, self.policy,
            self.purpose, self.sample, asdict(self.sampling), *earlier,
        )  # fmt: skip


@record
class SandboxResult:
    """What code printed; `error` is the code's own last error line, empty when it ended well."""

    stdout: str
    error: str = ""
    timed_out: bool = False
    truncated: bool = False
