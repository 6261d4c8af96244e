"""Run a graph on many attempts at once; every rollout becomes an `Episode`, whatever happens.

Goes in: attempts (orders for rollouts) and what they are lent. Comes out: episodes in the same
order, each reported through `on_done` as soon as it ends. Decision: a failure is data, a typed
`Failure` in the episode; only a spent budget, a log, journal or checkpoint that cannot be written
(what is paid for would be lost) and cancellation stop a run.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError

from agentloop.errors import (
    BudgetReached,
    LimitReached,
    ModelError,
    SandboxError,
    StoreError,
    ToolError,
    UsageError,
)
from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.graphs.context import RunContext, current_run
from agentloop.graphs.heartbeat import Heartbeat
from agentloop.graphs.lent import LentModel
from agentloop.graphs.lent_tools import ToolBook
from agentloop.graphs.load import Graph
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.pace import Pace, Place
from agentloop.graphs.resume import ORIGIN, keep_time, origin, resume
from agentloop.graphs.setup import Setups
from agentloop.graphs.text import final_answer
from agentloop.graphs.threads import serve
from agentloop.ports import Model, Tool
from agentloop.records import Attempt, Episode, Failure, Json, Limits, Reason
from agentloop.trajectories.redact import Redactor

_STEPS_PER_TURN = 25
"""Graph steps allowed per model call, so that a loop without calls ends as well."""
_GRACE = 0.5
"""Seconds that a cancelled graph has to end in before it is left behind."""
_TICK = 0.05
"""Seconds between two looks at a clock that stands still."""
_COLLECT_AFTER = 10_000
"""New objects before a collection of the youngest generation, while rollouts run."""
_PATIENCE = 10.0
"""Seconds that the event loop may stand still before a warning says where."""


def _quiet(episode: Episode) -> None:
    """The default `on_done`."""


class Owned(Protocol):
    """What one rollout has for itself, such as a world."""

    @property
    def first(self) -> str:
        """What the rollout is told first, after its task."""
        ...

    @property
    def tools(self) -> Sequence[Tool]:
        """Instead of the lent tools of the same names."""
        ...

    def state(self) -> dict[str, Json]:
        """How it is at the end, for `Episode.state`."""
        ...


@dataclass(frozen=True)
class Runner:
    """Runs `graph`. `checkpoints` is a folder that keeps each rollout's steps under its episode id:
    one that was cut off goes on from its last step. `native_tools` as in `RunContext`. `kept` gives
    the calls of an episode that the journal has, as the ends of their keys (`CallKeys.expect`).
    `own` makes what a rollout has for itself, anew for each; it is not among the kept steps, so it
    goes without `checkpoints`."""

    graph: Graph
    checkpoints: Path | None = None
    native_tools: bool = True
    kept: Callable[[str], Iterable[str]] | None = None
    own: Callable[[Attempt], Owned] | None = None

    async def run(
        self,
        attempts: Sequence[Attempt],
        *,
        model: Model,
        tools: Sequence[Tool] = (),
        limits: Limits = Limits(),
        concurrency: int = 64,
        on_done: Callable[[Episode], None] = _quiet,
    ) -> list[Episode]:
        """One episode per attempt, in order. They are started in order too, so that the samples of
        a task follow each other and find their common prefix in the server's cache.

        Cancellation ends every rollout; those that had begun are reported as failed with
        `cancelled`, with what they recorded. Raises `BudgetReached` when `model` does, after all
        rollouts in flight have ended and the attempts that were never started have been reported
        as failed with `budget`. A `StoreError` of any rollout cancels the others and is raised.
        """
        episodes: dict[int, Episode] = {}
        waiting = iter(enumerate(attempts))

        with self.opened(model=model, tools=tools, limits=limits, on_done=on_done) as batch:

            async def work() -> None:
                for at, attempt in waiting:
                    episodes[at] = await batch.rollout(attempt)

            await _together(work, min(concurrency, len(attempts)))
        if batch.spent is not None:
            raise batch.spent
        return [episodes[at] for at in range(len(attempts))]

    @contextmanager
    def opened(
        self, *, model: Model, tools: Sequence[Tool] = (), limits: Limits = Limits(),
        on_done: Callable[[Episode], None] = _quiet,
    ) -> Iterator[Batch]:  # fmt: skip
        """Rollouts that come one by one, for as long as the block takes; on an event loop."""
        loop = asyncio.get_running_loop()
        serve(loop)
        beats = Heartbeat(loop, _PATIENCE)
        saver = None
        if self.checkpoints is not None:
            saver = DeltaSaver(self.checkpoints, redact=Redactor.from_environment())
        graph = self.graph.copy({"checkpointer": saver})
        by_name = {tool.spec.name: tool for tool in tools}
        setups = Setups(self.graph, by_name, self.native_tools)
        with beats.watching(), _rare_collections():
            yield Batch(
                graph,
                saver,
                model,
                by_name,
                limits,
                self.native_tools,
                on_done,
                beats,
                setups,
                self.kept,
                self.own,
            )


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look for cycles less often while many rollouts run: they make so
    many short-lived objects that its default takes a sixth of all CPU."""
    before = gc.get_threshold()
    if not 0 < before[0] < _COLLECT_AFTER:  # switched off, or set by the program that calls us
        yield
        return
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _together(work: Callable[[], Any], workers: int) -> None:
    """Run `workers` copies; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None


@dataclass
class Batch:
    """What rollouts share that run side by side."""

    graph: Graph
    saver: DeltaSaver | None
    model: Model
    tools: dict[str, Tool]
    limits: Limits
    native_tools: bool
    on_done: Callable[[Episode], None]
    beats: Heartbeat
    setups: Setups
    kept: Callable[[str], Iterable[str]] | None
    own: Callable[[Attempt], Owned] | None
    pace: Pace = field(default_factory=Pace)
    spent: BudgetReached | None = field(default=None)
    """Why no further rollout begins."""

    async def rollout(self, attempt: Attempt) -> Episode:
        """One attempt to its end, reported. Raises only cancellation from outside, and `StoreError`
        where what it paid for cannot be kept."""
        place = Place(self.pace)
        await place.enter()
        try:
            return await self._rollout(attempt, place)
        finally:
            place.leave()

    async def _rollout(self, attempt: Attempt, place: Place) -> Episode:
        lent = LentModel(self.model, attempt, self.limits, turns=not self.native_tools, place=place)
        book = ToolBook()
        owned = self.own(attempt) if self.own is not None else None
        if self.kept is not None:
            lent.keys.expect(self.kept(attempt.id))

        def ended(answer: str | None, failure: Failure | None) -> Episode:
            made = _episode(attempt, lent, answer, failure)
            state = owned.state() if owned is not None else {}
            return replace(made, setup=self.setups.of(attempt, lent, book), state=state)

        answer, failure = None, None
        if self.spent is not None:
            failure = Failure(reason="budget", detail=_line(self.spent))
        else:
            try:
                answer, failure = await self._attempt(attempt, lent, book, owned)
            except asyncio.CancelledError:
                failure = Failure(reason="cancelled", detail="the run was stopped")
                if lent.recorder.trajectory().nodes:
                    self.on_done(ended(None, failure))
                if self.saver is not None:
                    keep_time(self.saver, attempt.id, lent.spent())
                raise
        episode = ended(answer, failure)
        self.on_done(episode)
        if self.saver is not None and failure is not None and failure.reason == "time_limit":
            keep_time(self.saver, attempt.id, None)
        return episode

    async def _attempt(
        self, attempt: Attempt, lent: LentModel, book: ToolBook, owned: Owned | None
    ) -> tuple[str | None, Failure | None]:
        """The answer or what came between. The graph has a task of its own, so that a node which
        swallows its cancellation cannot hold up the batch."""
        own = {tool.spec.name: tool for tool in owned.tools} if owned is not None else {}
        context = RunContext(
            model=lent, tools=book.lend({**self.tools, **own}), limits=self.limits,
            native_tools=self.native_tools,
        )  # fmt: skip
        first = owned.first if owned is not None else ""
        ready = asyncio.get_running_loop().create_future()
        work = asyncio.create_task(self._invoke(attempt, context, book, ready, first))
        try:
            await asyncio.wait((work, ready), return_when=asyncio.FIRST_COMPLETED)
            while not work.done() and (left := lent.clock.left()) > 0:
                await asyncio.wait((work,), timeout=max(left, _TICK))
            return self._outcome(work, lent)
        finally:
            try:
                await lent.close()
            finally:  # also when the run is cancelled while calls are waited for
                if not work.done():
                    work.cancel()
                    await asyncio.wait((work,), timeout=_GRACE)
            if work.done() and not work.cancelled():
                work.exception()  # else asyncio would complain that nobody asked

    def _outcome(
        self, work: asyncio.Task[dict[str, Any]], lent: LentModel
    ) -> tuple[str | None, Failure | None]:
        if not work.done():
            detail = f"not finished after {self.limits.seconds:g} s"
            if blocked := self.beats.since(lent.started):
                detail += f"; {blocked}"
            return None, Failure(reason="time_limit", detail=detail)
        try:
            state = work.result()
            if hidden := lent.stopped or lent.failed:  # the graph caught it and went on
                raise hidden
            return _answer(state), None
        except asyncio.CancelledError as error:
            return None, Failure(reason="cancelled", detail=_line(error))
        except StoreError:
            raise
        except Exception as error:
            if isinstance(error, BudgetReached):
                self.spent = error
            return None, Failure(reason=_reason(error), detail=_line(error))

    async def _invoke(
        self, attempt: Attempt, context: RunContext, book: ToolBook,
        ready: asyncio.Future[None], first: str,
    ) -> dict[str, Any]:  # fmt: skip
        """The graph's last state. `ready` is done when the clock shows the time that was taken in
        earlier processes, too."""
        current_run.set(context)
        config: RunnableConfig = {
            "configurable": {"thread_id": attempt.id},
            "recursion_limit": _STEPS_PER_TURN * (self.limits.turns + 1),
        }
        saver, lent = self.saver, context.model
        goes_on = False
        if saver is not None:
            config["metadata"] = {ORIGIN: origin(self.graph, attempt.task.prompt, self.tools)}
            goes_on = await resume(self.graph, saver, config, lent, book)
        ready.set_result(None)
        asked = {"role": "user", "content": "\n\n".join(filter(None, (attempt.task.prompt, first)))}
        task = {"messages": [*map(to_dict, attempt.history), asked]}
        state = await self.graph.ainvoke(
            None if goes_on else task,
            config,
            context=context if self.graph.context_schema is RunContext else None,
            durability="sync" if saver is not None else None,
        )
        if not isinstance(state, dict):
            raise UsageError(f"the graph returned a {type(state).__name__}, not a state")
        return state


def _episode(
    attempt: Attempt, lent: LentModel, answer: str | None, failure: Failure | None
) -> Episode:
    spent = lent.spent()
    return Episode(
        id=attempt.id,
        task=attempt.task,
        bundle=attempt.bundle,
        purpose=attempt.purpose,
        run=attempt.run,
        seed=attempt.sampling.seed or 0,
        sample=attempt.sample,
        trajectories=(lent.recorder.trajectory(),),
        answer=answer,
        failure=failure,
        usage=lent.usage,
        started=spent.began,
        seconds=spent.seconds,
        skills=attempt.skills,
    )


def _answer(state: dict[str, Any]) -> str:
    if "__interrupt__" in state:
        raise UsageError("the graph stopped at an interrupt; a rollout has nobody to ask")
    if state.get("answer") is not None:
        return str(state["answer"])
    for value in reversed(state.get("messages") or []):
        message = to_message(value)
        if message.role == "assistant":
            return final_answer(message.content)
    raise UsageError("the graph's last state has neither `answer` nor an assistant message")


def _reason(error: Exception) -> Reason:
    match error:
        case LimitReached() | ModelError():
            return error.reason  # type: ignore[return-value]
        case BudgetReached():
            return "budget"
        case SandboxError():
            return "sandbox_error"
        case ToolError():
            return "tool_error"
        case GraphRecursionError():
            return "turn_limit"
        case _:
            return "graph_error"


def _line(error: BaseException) -> str:
    """The first line of an error, with its type unless it is one of ours."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    ours = type(error).__module__ == "agentloop.errors"
    return text if ours and text else f"{type(error).__name__}: {text}".rstrip(": ")
