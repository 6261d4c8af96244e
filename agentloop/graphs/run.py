"""Run a graph on many attempts at once; every rollout becomes an `Episode`, whatever happens.

Goes in: attempts (orders for rollouts) and what they are lent. Comes out: episodes in the same
order, each reported through `on_done` as soon as it ends. Decision: a failure is data, a typed
`Failure` in the episode; only a spent budget, a broken log (`on_done` raising) and cancellation
stop a run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphRecursionError

from agentloop.errors import BudgetReached, ModelError, SandboxError, ToolError, UsageError
from agentloop.graphs.context import RunContext, current_run
from agentloop.graphs.lent import LentModel, LimitReached
from agentloop.graphs.load import Graph
from agentloop.graphs.messages import to_message
from agentloop.graphs.text import final_answer
from agentloop.ports import Model, Tool
from agentloop.records import Attempt, Episode, Failure, Limits, Reason

_STEPS_PER_TURN = 25
"""Graph steps allowed per model call, so that a loop without calls ends as well."""


def _quiet(episode: Episode) -> None:
    """The default `on_done`."""


@dataclass(frozen=True)
class Runner:
    """Runs `graph`. `checkpoints` is an SQLite file that keeps each rollout's last state under
    its episode id; `native_tools` as in `RunContext`."""

    graph: Graph
    checkpoints: Path | None = None
    native_tools: bool = True

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
        """One episode per attempt, in order.

        Raises `BudgetReached` when `model` does, after all rollouts in flight have ended and the
        attempts that were never started have been reported as failed with `budget`.
        """
        # Synchronous nodes run in the loop's default threads, which are too few for a batch.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=max(concurrency, 8)))
        async with self._graph() as (graph, saver):
            by_name = {tool.spec.name: tool for tool in tools}
            batch = _Batch(graph, saver, model, by_name, limits, self.native_tools)
            episodes: dict[int, Episode] = {}
            waiting = iter(enumerate(attempts))

            async def work() -> None:
                for at, attempt in waiting:
                    episodes[at] = await batch.rollout(attempt)
                    on_done(episodes[at])

            await _together(work, min(concurrency, len(attempts)))
        if batch.spent is not None:
            raise batch.spent
        return [episodes[at] for at in range(len(attempts))]

    @asynccontextmanager
    async def _graph(self) -> AsyncIterator[tuple[Graph, AsyncSqliteSaver | None]]:
        if self.checkpoints is None:
            yield self.graph.copy({"checkpointer": None}), None
            return
        async with open_checkpoints(self.checkpoints) as saver:
            yield self.graph.copy({"checkpointer": saver}), saver


@asynccontextmanager
async def open_checkpoints(path: Path) -> AsyncIterator[AsyncSqliteSaver]:
    """A checkpointer that, when it loads, constructs nothing but plain and LangChain types."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        saver.serde = JsonPlusSerializer(allowed_msgpack_modules=[])
        await saver.setup()
        yield saver


async def _together(work: Callable[[], Any], workers: int) -> None:
    """Run `workers` copies; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None


@dataclass
class _Batch:
    """What the rollouts of one `Runner.run` share."""

    graph: Graph
    saver: AsyncSqliteSaver | None
    model: Model
    tools: dict[str, Tool]
    limits: Limits
    native_tools: bool
    spent: BudgetReached | None = field(default=None)

    async def rollout(self, attempt: Attempt) -> Episode:
        """One attempt to its end; raises nothing but cancellation from outside."""
        started, clock = time.time(), time.monotonic()
        lent = LentModel(self.model, attempt, self.limits, turns=not self.native_tools)
        answer, failure = None, None
        if self.spent is not None:
            failure = Failure(reason="budget", detail=_line(self.spent))
        else:
            answer, failure = await self._attempt(attempt, lent)
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
            started=started,
            seconds=time.monotonic() - clock,
            skills=attempt.skills,
        )

    async def _attempt(
        self, attempt: Attempt, lent: LentModel
    ) -> tuple[str | None, Failure | None]:
        context = RunContext(
            model=lent, tools=self.tools, limits=self.limits, native_tools=self.native_tools
        )
        token = current_run.set(context)
        try:
            async with asyncio.timeout(self.limits.seconds) as deadline:
                state = await self._invoke(attempt, context)
            if lent.stopped is not None:  # the graph caught it and went on
                raise lent.stopped
            return _answer(state), None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None, Failure(reason="cancelled", detail=_line(error))
        except Exception as error:
            if deadline.expired():
                detail = f"not finished after {self.limits.seconds:g} s"
                return None, Failure(reason="time_limit", detail=detail)
            if isinstance(error, BudgetReached):
                self.spent = error
            return None, Failure(reason=_reason(error), detail=_line(error))
        finally:
            lent.close()
            current_run.reset(token)

    async def _invoke(self, attempt: Attempt, context: RunContext) -> dict[str, Any]:
        if self.saver is not None:
            # A repeated attempt starts over; its finished calls are answered by the journal.
            await self.saver.adelete_thread(attempt.id)
        state = await self.graph.ainvoke(
            {"messages": [{"role": "user", "content": attempt.task.prompt}]},
            {
                "configurable": {"thread_id": attempt.id},
                "recursion_limit": _STEPS_PER_TURN * (self.limits.turns + 1),
            },
            context=context if self.graph.context_schema is RunContext else None,
            durability="exit" if self.saver is not None else None,
        )
        if not isinstance(state, dict):
            raise UsageError(f"the graph returned a {type(state).__name__}, not a state")
        return state


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
        case LimitReached():
            return error.reason
        case BudgetReached():
            return "budget"
        case ModelError():
            return error.reason  # type: ignore[return-value]
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
    ours = isinstance(error, LimitReached) or type(error).__module__ == "agentloop.errors"
    return text if ours and text else f"{type(error).__name__}: {text}".rstrip(": ")
