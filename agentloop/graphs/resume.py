"""Continue a rollout where a killed process left it: its steps, and what was recorded of its calls.

Goes in: a graph with a `DeltaSaver`, and the model that the rollout is lent. Comes out: whether to
invoke the graph with nothing (go on) or with the task (start over). Decision: where going on could
end otherwise than the undisturbed rollout, it is started over: when the steps are of another graph
or task (`origin`), hold objects that are not made again on loading, or end where several nodes run
side by side (calls are numbered in the order they come, and those nodes have none). Finished calls
are answered by the journal either way, each under its old number (`CallKeys.expect`). Time goes on
where it was when the rollout was cancelled; a process that was killed is known to have run until
its last call of the model or a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.types import StateSnapshot

from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.graphs.lent import LentModel, Spent
from agentloop.graphs.lent_tools import ToolBook
from agentloop.graphs.load import Graph
from agentloop.graphs.setup import shape_of
from agentloop.records import Completion, Json, Message, Request, Sampling, ToolResult, content_id
from agentloop.trajectories.codec import from_json, to_json

_TOLD, _KEY, _SPENT = "tool_call", "key", "spent"
ORIGIN = "agentloop_origin"
"""Under which a checkpoint's metadata holds its `origin`."""


def origin(graph: Graph, prompt: str, tools: Iterable[str]) -> str:
    """What steps are steps of: the task, the names of the tools, and the graph's nodes and how they
    follow each other (not their code, which is as little looked into as that of a library)."""
    return content_id("origin", prompt, sorted(tools), shape_of(graph))


async def resume(
    graph: Graph, saver: DeltaSaver, config: RunnableConfig, lent: LentModel, book: ToolBook
) -> bool:
    """Whether the rollout that `config` names goes on; then `lent` knows its earlier calls and
    `book` what its tools gave. From now on both are kept beside the steps. The time that it took
    counts on also where it starts over."""
    thread = config["configurable"]["thread_id"]
    notes = Notes(saver, thread, lent.spent)
    lent.on_call, book.on_result = notes.add, notes.add_result
    refused: list[SerdeEvent] = []
    stop = register_serde_event_listener(refused.append)
    try:
        found = saver.get_tuple(config)
        if found is None:
            return False
        state = await graph.aget_state(config, subgraphs=True)
    finally:
        stop()
    same = dict(found.metadata).get(ORIGIN) == config["metadata"][ORIGIN]
    spent = notes.read_time() if same else None
    goes_on = same and not refused and bool(state.values) and not _side_by_side(state)
    if goes_on:
        lent.restore(notes.read())
        book.restore(notes.read_results())
    else:
        saver.delete_thread(thread)
    if spent is not None:
        lent.go_on(spent)
        notes.add_time()
    return goes_on


def keep_time(saver: DeltaSaver, thread: str, spent: Spent | None) -> None:
    """Note what a rollout took until it was cut off; `None` when it is over, so that another try
    has all of its time."""
    Notes(saver, thread, lambda: spent).add_time()


def _side_by_side(state: StateSnapshot) -> bool:
    """Whether several nodes are due at once, here or in a subgraph."""
    within = (task.state for task in state.tasks)
    return len(state.tasks) > 1 or any(
        isinstance(one, StateSnapshot) and _side_by_side(one) for one in within
    )


class Notes:
    """The calls of one rollout, each kept as what it adds to the one before it, and what its tools
    gave; beside each, the time it had taken by then."""

    def __init__(
        self, saver: DeltaSaver, thread: str, spent: Callable[[], Spent | None] = lambda: None
    ) -> None:
        self._saver, self._thread, self._spent = saver, thread, spent
        self._messages: tuple[Message, ...] = ()
        self._ids: tuple[int, ...] = ()
        self._clean = True

    def add(self, request: Request, completion: Completion) -> None:
        """Keep a finished call. Once a secret was seen, no ids are: they spell it."""
        messages = tuple(_bare(message) for message in request.messages)
        new = messages[_common(self._messages, messages) :]
        reply = replace(completion, prompt_ids=None, message=_bare(completion.message))
        texts = [to_json(one) for one in (*new, reply.message)]
        self._clean = self._clean and not self._saver.would_redact(texts)
        prompt = completion.prompt_ids if self._clean else None
        if not self._clean:
            reply = replace(reply, completion_ids=None, logprobs=None, redacted=True)
        shared = _common(self._ids, prompt or ())
        self._saver.note(self._thread, {
            _KEY: request.key, "policy": request.policy, "sampling": to_json(request.sampling),
            "messages": [len(messages) - len(new), *texts[:-1]], "reply": to_json(reply),
            "prompt": None if prompt is None else [shared, *prompt[shared:]],
            _SPENT: self._time(),
        })  # fmt: skip
        self._know(messages, prompt, reply)

    def read(self) -> list[tuple[Request, Completion]]:
        """The calls of the finished steps."""
        return [self._read(note) for note in self._saver.notes(self._thread) if _KEY in note]

    def add_result(self, at: int, result: ToolResult) -> None:
        """Keep what the tool call at place `at` gave."""
        note = {_TOLD: at, "result": to_json(result), _SPENT: self._time()}
        self._saver.note(self._thread, note)

    def read_results(self) -> dict[int, ToolResult]:
        """Of the finished steps, by place."""
        notes = [note for note in self._saver.notes(self._thread) if _TOLD in note]
        return {note[_TOLD]: from_json(ToolResult, note["result"]) for note in notes}

    def add_time(self) -> None:
        """Keep the time alone."""
        self._saver.note(self._thread, {_SPENT: self._time()})

    def read_time(self) -> Spent | None:
        """The latest, also of a step that runs again."""
        notes = reversed(self._saver.notes(self._thread, all=True))
        spent = next((note[_SPENT] for note in notes if _SPENT in note), None)
        return None if spent is None else Spent(*spent)

    def _time(self) -> list[Json] | None:
        spent = self._spent()
        return None if spent is None else list(spent)

    def _read(self, note: Any) -> tuple[Request, Completion]:
        kept, *new = note["messages"]
        messages = (*self._messages[:kept], *(from_json(Message, one) for one in new))
        prompt = note["prompt"]
        ids = None if prompt is None else (*self._ids[: prompt[0]], *prompt[1:])
        reply = from_json(Completion, note["reply"])
        self._know(messages, ids, reply)
        self._clean = self._clean and not reply.redacted
        sampling = from_json(Sampling, note["sampling"])
        request = Request(
            messages=messages, sampling=sampling, policy=note["policy"], key=note[_KEY]
        )
        return request, replace(reply, prompt_ids=ids)

    def _know(
        self, messages: tuple[Message, ...], prompt: tuple[int, ...] | None, reply: Completion
    ) -> None:
        self._messages = (*messages, reply.message)
        self._ids = (*(prompt or ()), *(reply.completion_ids or ()))


def _bare(message: Message) -> Message:
    return message if message.token_ids is None else replace(message, token_ids=None)


def _common(old: Sequence[object], new: Sequence[object]) -> int:
    """The length of what both begin with."""
    if new[: len(old)] == old:
        return len(old)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
