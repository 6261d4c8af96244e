"""OpenAI's chat-completions format as a server sees it: bodies to `Request`s and back.

In: the bytes that a client sent. Out: a `Request` and what it wants back (`Ask`); then one JSON
body, or the chunks of a stream. The decision worth knowing: a field that asks for something the
gateway cannot give is refused by name, never ignored; fields that do not change what is sampled
(`user`, `metadata`, ...) are accepted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentloop.errors import UsageError
from agentloop.records import (
    Completion,
    Message,
    OwnSampling,
    Request,
    Sampling,
    ToolCall,
    ToolSpec,
    record,
)
from agentloop.trajectories.arguments import read_arguments, write_arguments

MAX_MESSAGES = 4096
_FINISH = frozenset({"stop", "length", "tool_calls", "content_filter"})
_HARMLESS = frozenset(
    {"user", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention",
     "safety_identifier", "parallel_tool_calls", "reasoning_effort", "verbosity", "extra_headers"}
)  # fmt: skip
"""Fields that change nothing in what a model of ours samples."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1, None),
    "logprobs": (False, None),
    "top_logprobs": (None, 0),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None, "none"),
}
"""Fields that are accepted only with a value that asks for nothing."""


@record
class Ask:
    """What a client asked for."""

    request: Request
    stream: bool
    usage: bool
    """Whether a stream ends with a chunk that has the counts."""
    tools: bool = False
    """Whether the client brings tools of its own, offered or (`tool_choice`) withheld."""
    store: bool | None = None
    """Whether the client agrees that the conversation is kept; `None` when it did not say."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Part(_Shape):
    type: str
    text: str | None = None


class _CalledFunction(_Shape):
    name: str
    arguments: str = ""


class _Call(_Shape):
    id: str
    type: Literal["function"] = "function"
    function: _CalledFunction


class _Message(_Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    # What is not carried on is accepted only empty, as OpenAI's clients send it back.
    function_call: None = None
    audio: None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Function(_Shape):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(_Shape):
    type: Literal["function"]
    function: _Function


class _NamedTool(_Shape):
    function: _Function


class _StreamOptions(_Shape):
    include_usage: bool | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    model: str | None = None
    messages: list[_Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    stream: bool | None = None
    store: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None


# --- in -----------------------------------------------------------------------------------------


def parse(data: bytes) -> Ask:
    """What the body of `POST /chat/completions` asks for. Raises `UsageError` that names the field
    which is missing, of the wrong kind, or asks for what is not given here."""
    try:
        body = _Body.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{f'`{at}`' if at else 'the body'}: {first['msg']}") from error
    for key, value in (body.model_extra or {}).items():
        if key in _HARMLESS:
            continue
        if key not in _NEUTRAL:
            raise UsageError(f"the field `{key}` is not supported here")
        if value not in _NEUTRAL[key]:
            raise UsageError(f"`{key}` = {json.dumps(value)[:80]} is not supported here")
    request = Request(
        messages=tuple(_message(at, message) for at, message in enumerate(body.messages)),
        tools=_offered(body),
        sampling=_sampling(body),
    )
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Ask(
        request=request, stream=bool(body.stream), usage=usage, tools=bool(body.tools),
        store=body.store,
    )  # fmt: skip


def _message(at: int, message: _Message) -> Message:
    content = message.content
    if isinstance(content, list):
        content = "".join(_text(f"messages.{at}.content.{n}", one) for n, one in enumerate(content))
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=content or "",
        tool_calls=tuple(
            ToolCall(
                id=call.id,
                name=call.function.name,
                arguments=read_arguments(call.function.arguments),
            )
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _text(place: str, part: _Part) -> str:
    if part.type != "text" or part.text is None:
        raise UsageError(f"`{place}` is of type `{part.type}`; only text is supported here")
    return part.text


def _offered(body: _Body) -> tuple[ToolSpec, ...]:
    """The tools that the model is told of. A `tool_choice` that names one leaves only that one; a
    model cannot be made to call it."""
    if body.tool_choice == "none":
        return ()
    only = body.tool_choice.function.name if isinstance(body.tool_choice, _NamedTool) else None
    return tuple(
        ToolSpec(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters or {"type": "object", "properties": {}},
        )
        for tool in body.tools or ()
        if only in (None, tool.function.name)
    )


def _sampling(body: _Body) -> Sampling:
    """What the client set, for the workflow to add to."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stop:
        raise UsageError("`stop` has an empty text, at which every reply would end; leave it out")
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "seed": body.seed,
        "stop": stop or None,
    }
    return OwnSampling.of(**{name: value for name, value in given.items() if value is not None})


# --- out ----------------------------------------------------------------------------------------


def body_of(completion: Completion, name: str, *, fingerprint: str | None = None) -> dict[str, Any]:
    """The JSON body of one reply; `name` is its `id`, `fingerprint` what stands behind it."""
    message: dict[str, Any] = {"role": "assistant", **_said(completion)}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": _finish(completion),
        "logprobs": None,
    }
    return {
        **_head(completion, name, "chat.completion", fingerprint),
        "choices": [choice],
        "usage": _usage(completion),
    }


def chunks_of(
    completion: Completion, name: str, *, usage: bool, fingerprint: str | None = None
) -> Iterator[dict[str, Any]]:
    """The same as the chunks of a stream: the role, what was said, why it ended and, if asked for,
    the counts."""
    head = _head(completion, name, "chat.completion.chunk", fingerprint)
    said = _said(completion)
    for at, call in enumerate(said.get("tool_calls", ())):
        call["index"] = at
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({key: value for key, value in said.items() if value is not None}, None),
        ({}, _finish(completion)),
    ]
    for delta, finish in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    if usage:
        yield {**head, "choices": [], "usage": _usage(completion)}


def _head(completion: Completion, name: str, kind: str, fingerprint: str | None) -> dict[str, Any]:
    return {
        "id": name, "object": kind, "created": int(time.time()), "model": completion.model,
        "system_fingerprint": fingerprint,
    }  # fmt: skip


def _said(completion: Completion) -> dict[str, Any]:
    message = completion.message
    if not message.tool_calls:
        return {"content": message.content}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": write_arguments(call.arguments)},
        }
        for call in message.tool_calls
    ]
    return {"content": message.content or None, "tool_calls": calls}


def _finish(completion: Completion) -> str:
    reason = completion.finish_reason
    return reason if reason in _FINISH else "stop"


def _usage(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
