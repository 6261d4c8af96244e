"""What happened: an order for a rollout, its trajectories, its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

from agentloop.records.base import Json, Purpose, Reason, content_id, record
from agentloop.records.exchange import Message, Sampling, Task, Usage
from agentloop.records.learning import Limits

_FAILED = "ep-failed-"


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
class ToolResult:
    """What a lent tool gave; `error` says of which kind when it is the text of one."""

    name: str
    text: str
    error: Literal["", "tool", "sandbox"] = ""
    arguments: str = ""
    """Digest of what it was called with."""


@record
class Unanswered:
    """A model call that brought no reply."""

    call: str
    """`NUMBER-DIGEST` of what it asked, the end of its request's key."""
    after: int
    """How many calls had their reply by then."""
    failure: Failure


@record
class Setup:
    """What a rollout was given beside its task and bundle, and what it was told from outside: all
    that it takes, with the model's replies, to make it again."""

    graph: str
    """The reference that it was loaded by; empty for an agent that runs elsewhere."""
    shape: str
    """Digest of the graph's nodes and how they follow each other."""
    tools: dict[str, str]
    """Name of each tool that was lent -> digest of its schema."""
    system: str
    sampling: Sampling
    limits: Limits
    policy: str | None = None
    subject: str = ""
    native_tools: bool = True
    results: tuple[ToolResult, ...] = ()
    """Of the lent tools, in the order in which they were called."""
    offered: dict[str, str] = field(default_factory=dict)
    """The same of tools of the agent's own that it showed the model."""
    unanswered: tuple[Unanswered, ...] = ()
    """Model calls that failed, in the order in which they did."""
    parent: str = ""
    """The episode that this one was forked from, before its model call number `step`."""
    step: int = 0
    history: tuple[Message, ...] = ()
    """What was said before the task, when that is a turn of a conversation."""


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
    setup: Setup | None = None
    """`None` in records of earlier releases."""

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
    parent: str = ""
    step: int = 0
    """As in `Setup`; `subject` holds them too."""
    history: tuple[Message, ...] = ()
    """As in `Setup`."""

    @cached_property
    def id(self) -> str:
        """The episode's id: equal orders have equal ids, so a repeated one is found, not paid."""
        earlier = [[asdict(message) for message in self.history]] if self.history else []
        return content_id(
            "ep", self.run, self.subject, self.task.id, self.bundle, self.system, self.policy,
            self.purpose, self.sample, asdict(self.sampling), *earlier,
        )  # fmt: skip


def attempt_of(episode: Episode) -> Attempt:
    """The order that a rollout is the result of; only of an episode with a `setup`."""
    setup = episode.setup
    assert setup is not None
    return Attempt(
        task=episode.task, bundle=episode.bundle, system=setup.system, sampling=setup.sampling,
        purpose=episode.purpose, run=episode.run, sample=episode.sample, policy=setup.policy,
        skills=episode.skills, subject=setup.subject, parent=setup.parent, step=setup.step,
        history=setup.history,
    )  # fmt: skip


def order_id(episode: str) -> str:
    """The id of the order that the episode named so is the result of: its own, but for failures of
    the infrastructure, which are logged under names of their own (`lanes.bench`)."""
    if not episode.startswith(_FAILED):
        return episode
    return "ep-" + episode.removeprefix(_FAILED).partition("-")[0]


@record
class Program:
    """A Python program for a sandbox: `code` is run as `python -I -S`, with `arguments` in
    `sys.argv[1:]`, in a working folder that holds `files` (plain names and their bytes) and nothing
    else. The folder is the last entry of `sys.path`: a file can be imported and can stand in for no
    module of the standard library. Never stored, so its files are bytes."""

    code: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


@record
class SandboxResult:
    """What code printed; `error` is the code's own last error line, empty when it ended well.
    `returncode` is the exit status as a shell gives it, 128 + n when signal n ended the program;
    `None` where there is none: an interpreter within a process, or a program that was ended for
    its time (`timed_out`) or its output."""

    stdout: str
    error: str = ""
    timed_out: bool = False
    truncated: bool = False
    returncode: int | None = None
