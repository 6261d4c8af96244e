"""A fake chat model for tests, examples and dry runs: replies from a list, a function or a file.

In: `Request`; out: a `Completion` decided by nothing but the request and the calls before it. It
counts whitespace-separated words as tokens and gives ids and log-probs like a real engine.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from agentloop.errors import ModelError, StoreError, UsageError
from agentloop.ports import Model
from agentloop.records import Completion, Message, Request, Usage
from agentloop.trajectories.codec import from_json, to_json
from agentloop.trajectories.redact import Redactor

Reply: TypeAlias = str | Message | Completion
Replies: TypeAlias = Sequence[Reply] | Callable[[Request], Reply] | os.PathLike[str]
_IDS = 2**15


class Scripted:
    """Replies in place of a model; `calls` counts them, `usage` adds them up."""

    def __init__(self, replies: Replies, *, model: str = "scripted") -> None:
        """`replies` is one of

        - a sequence: one reply per call, in order of the calls;
        - a function of the request: for concurrent calls (it may raise `ModelError`);
        - a path: a recorded JSONL file, see `Recording`.
        """
        self.model, self.calls, self.usage = model, 0, Usage()
        self._reply: Callable[[Request], Reply]
        if isinstance(replies, os.PathLike):
            self._reply = Recording(Path(replies)).reply
        elif callable(replies):
            self._reply = replies
        else:
            self._listed = tuple(replies)
            self._reply = self._next

    async def complete(self, request: Request) -> Completion:
        """The scripted reply. Raises `ModelError` when there is none."""
        self.calls += 1
        completion = self._completion(request, self._reply(request))
        self.usage += completion.usage
        return completion

    async def close(self) -> None:
        """Nothing to close; there so that it can stand for any connected model."""

    def _next(self, request: Request) -> Reply:
        if self.calls > len(self._listed):
            raise ModelError(
                f"the script has {len(self._listed)} replies, and this is call {self.calls}"
            )
        return self._listed[self.calls - 1]

    def _completion(self, request: Request, reply: Reply) -> Completion:
        if isinstance(reply, Completion):
            return reply
        message = Message(role="assistant", content=reply) if isinstance(reply, str) else reply
        prompt = tuple(token for sent in request.messages for token in token_ids(sent))
        ids = token_ids(message)
        return Completion(
            message=Message(
                role="assistant",
                content=message.content,
                tool_calls=message.tool_calls,
                token_ids=ids,
            ),
            finish_reason="tool_calls" if message.tool_calls else "stop",
            usage=Usage(prompt_tokens=len(prompt), completion_tokens=len(ids), calls=1),
            model=self.model,
            policy=request.policy,
            prompt_ids=prompt,
            completion_ids=ids,
            logprobs=(0.0,) * len(ids),  # the only possible reply: probability one
        )


def token_ids(message: Message) -> tuple[int, ...]:
    """One id per word of the text, and of each tool call's name and JSON arguments. The ids of a
    conversation are those of its messages in a row, so each prompt continues the one before."""
    calls = (f"{call.name} {json.dumps(call.arguments)}" for call in message.tool_calls)
    words = " ".join((message.content, *calls)).split()
    return tuple(zlib.crc32(word.encode("utf-8", "replace")) % _IDS for word in words)


# --- recorded files -----------------------------------------------------------------------------


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    match: str
    turn: int | None = None
    reply: str | dict[str, Any]


class Recording:
    """A JSONL file of replies, one object a line:

        {"match": "2 + 3", "turn": 0, "reply": "5"}

    `match` is the last user text, or a part of it; `turn` (optional) the number of assistant
    messages before the reply; `reply` a text, a `Message` or a `Completion` as JSON. The whole
    text is tried before parts, parts in the order of the file. Rows with the same `match` and
    `turn` take turns. Raises `UsageError` (with the line) for a file that is not like this.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[_Row, Reply]] = []
        self._used: Counter[tuple[str, int | None]] = Counter()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the recorded replies `{path}` cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = _Row.model_validate_json(line)
                    self._rows.append((row, _reply(row.reply)))
                except (ValidationError, StoreError) as error:
                    raise UsageError(
                        f'`{path}` line {number} is not {{"match": ..., "reply": ...}}: {error}'
                    ) from error

    def reply(self, request: Request) -> Reply:
        """The reply to `request`. Raises `ModelError` when no row matches."""
        text, turn = _asked(request)
        fitting = [(row, reply) for row, reply in self._rows if row.turn in (None, turn)]
        first = next((row for row, _ in fitting if row.match == text), None) or next(
            (row for row, _ in fitting if row.match in text), None
        )
        if first is None:
            raise ModelError(f"`{self._path}` has no reply to turn {turn} of: {text[:200]}")
        key = (first.match, first.turn)
        same = [reply for row, reply in self._rows if (row.match, row.turn) == key]
        self._used[key] += 1
        return same[(self._used[key] - 1) % len(same)]


class Recorder:
    """Wrap a real model: what it replies is appended to `path`, for `Scripted(path)`, without
    secrets (a text that held one is not matched again)."""

    def __init__(self, inner: Model, path: Path) -> None:
        self._inner, self._path = inner, path
        self._redact = Redactor.from_environment()

    async def complete(self, request: Request) -> Completion:
        """The inner model's reply."""
        completion = await self._inner.complete(request)
        text, turn = _asked(request)
        row = {"match": text, "turn": turn, "reply": to_json(completion)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._redact(row)) + "\n")
        return completion


def _asked(request: Request) -> tuple[str, int]:
    """The last user text, and how many assistant messages there are already."""
    users = [message.content for message in request.messages if message.role == "user"]
    replies = sum(message.role == "assistant" for message in request.messages)
    return (users[-1] if users else ""), replies


def _reply(data: str | dict[str, Any]) -> Reply:
    if isinstance(data, str):
        return data
    if "message" in data:
        return from_json(Completion, data)
    return from_json(Message, {"role": "assistant", "content": "", **data})
