"""The verbs: one Protocol per seam, with one or two methods each, and `@part`.

Everything that a workflow names is a *part*: a frozen dataclass whose fields are its keys in
`workflow.yaml` and whose methods satisfy one of these ports. Parts are found by reference
(`refs.resolve`), so there is no registry. A port's docstring is its contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, dataclass_transform, runtime_checkable

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from agentloop.records import (
    Completion,
    Endpoint,
    Episode,
    Json,
    Observation,
    Program,
    Request,
    SandboxResult,
    Score,
    Task,
    ToolCall,
    ToolSpec,
    TrainingJob,
    TrainingResult,
    Verdict,
)  # fmt: skip

T = TypeVar("T")
Split = Literal["train", "heldout"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def part(cls: type[T]) -> type[T]:
    """A frozen, validated, keyword-only dataclass: unknown keys and wrong types are errors."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[return-value]


@runtime_checkable
class Tasks(Protocol):
    """What to attempt."""

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        """`n` tasks (fewer when a file has fewer), the same for the same arguments. No task of
        `heldout` is ever returned for `train`, whatever the seeds. Families are interleaved, so
        that any prefix is balanced. Raises `UsageError` on an unreadable source."""
        ...

    def learn(self, episodes: Sequence[Episode]) -> None:
        """Take note of scored episodes (curricula, grown tasks); a fixed source does nothing."""
        ...


@runtime_checkable
class Model(Protocol):
    """A chat model."""

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `ModelError` (typed, with `retryable`) within its deadline."""
        ...


@runtime_checkable
class Reward(Protocol):
    """How good it was. Takes a batch, because some rewards need the whole group."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One score per episode, in order, values finite and in [0, 1]. Only episodes that ended
        or failed by their own doing (`records.AGENT_REASONS`) are given."""
        ...


@runtime_checkable
class Tool(Protocol):
    """Something an agent may call."""

    @property
    def spec(self) -> ToolSpec:
        """Name, description and JSON schema."""
        ...

    async def call(self, arguments: dict[str, Json]) -> str:
        """Text for the model. Raises `ToolError` for what the model did wrong and `SandboxError`
        for what it did not."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """Where untrusted code runs."""

    async def run(self, code: str) -> SandboxResult:
        """Run `code` under the profile's limits. Raises `SandboxError` when it cannot be run."""
        ...

    async def close(self) -> None:
        """Free workers; idempotent."""
        ...


@runtime_checkable
class Programs(Protocol):
    """Optional for a `Sandbox`: whole programs of full Python, with files beside them."""

    async def execute(self, program: Program) -> SandboxResult:
        """Run `program` to its end under the profile's limits; nothing of it is left. Raises
        `SandboxError` when it cannot be run, `UsageError` for files that cannot be laid out."""
        ...


class Session(Protocol):
    """A program in a sandbox that answers lines, over a channel that is not its stdout."""

    async def ask(self, line: str, *, seconds: float) -> str:
        """What the program's `answer(line)` returns: text of one line, 64 KiB at most, within
        `seconds` of wall time and the profile's own `seconds`. One call at a time.

        Raises `SessionEnded` when the program raised, ended, was late, gave anything else or had
        written before it was asked (every later call raises it too); what it writes at the same
        moment is only told apart by an id in the question. Raises `SandboxError` when the sandbox
        broke, `UsageError` when `line` is no line of 64 KiB."""
        ...


@runtime_checkable
class Sessions(Protocol):
    """Optional for a `Sandbox`: programs that stay and answer."""

    def session(self, program: Program) -> AbstractAsyncContextManager[Session]:
        """Start `program`, which defines `answer(line: str) -> str`, under the profile's limits;
        leaving the context ends it and all it started. What it prints is dropped. Entering raises
        `SandboxError` when it cannot be started; that its code fails shows at the first `ask`."""
        ...


@runtime_checkable
class Lends(Protocol):
    """Optional for a `Sandbox`: code that may call functions of ours, which run out here."""

    async def run_with(
        self, code: str, functions: Mapping[str, Callable[..., Json]]
    ) -> SandboxResult:
        """As `Sandbox.run`. What a function is given was made by the code; its `ValueError` is
        raised in the code."""
        ...


@runtime_checkable
class World(Protocol):
    """A stateful environment; success is read from its state by a `Reward`, never shown."""

    def reset(self, task: Task, seed: int) -> Observation:
        """Start over. The same task and seed give the same transcript for the same calls."""
        ...

    def act(self, call: ToolCall) -> Observation:
        """One step. A wrong call is an observation that says so, not an exception."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """Optional for a `World`: tree search, partial histories, forks."""

    def snapshot(self) -> dict[str, Json]:
        """The whole state as JSON."""
        ...

    def restore(self, state: dict[str, Json]) -> None:
        """Continue from `state` exactly as if it had been reached by acting."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Text to vectors, offline."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """Learning, in a process of its own."""

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Run the job to its end. Raises `TrainingError`; nothing is left half-written."""
        ...


class Evaluate(Protocol):
    """Lent to a gate: roll out a bundle on held-out tasks."""

    async def __call__(self, bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        """One scored episode per task, in order."""
        ...


@runtime_checkable
class Gate(Protocol):
    """May it serve?"""

    async def judge(
        self, subject: str, *, champion: str, challenger: str, tasks: Sequence[Task],
        evaluate: Evaluate, share: float = 1.0,
    ) -> Verdict:  # fmt: skip
        """Compare two bundles on the same tasks, with `share` of the gate's alpha."""
        ...


@runtime_checkable
class Server(Protocol):
    """A local model server."""

    async def start(self) -> Endpoint:
        """Start (or find it started) and wait until it answers. Raises `ServerError`."""
        ...

    async def load_policy(self, name: str, path: Path) -> None:
        """Serve the adapter at `path` as model `name`, beside the base; idempotent."""
        ...

    async def unload_policy(self, name: str) -> None:
        """Let go of adapter `name`: replies under way are finished, later requests for it are
        refused until it is loaded again. One that is not served is passed over."""
        ...

    async def stop(self) -> None:
        """Stop it; idempotent."""
        ...


class Progress(Protocol):
    """Where long work tells how far it is."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of `stage`."""
        ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The `Progress` that says nothing."""


Part = Any
"""An object made by `@part`; its port is checked when a workflow is assembled."""
