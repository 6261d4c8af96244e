"""Records to the chat-completions format of OpenAI and back; every transport uses this one pair.

In: a `Request`; out: the JSON body. In: the JSON answer; out: a `Completion`. Extensions (token ids
on assistant messages, `return_token_ids`, log-probs) are spoken only to servers known to have them.
"""

from __future__ import annotations

import json
import math
from array import array
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypedDict

from agentloop.errors import UNTOLD
from agentloop.models import faults
from agentloop.records import Completion, Json, Message, Request, ToolCall, ToolSpec, Usage
from agentloop.trajectories.arguments import read_arguments

# --- out ----------------------------------------------------------------------------------------


def encode(
    request: Request, model: str, *, extensions: bool = False, native_tools: bool = True
) -> dict[str, Any]:
    """The body of `POST /chat/completions`. `request.policy` is named instead of `model` when set;
    tools are left out for a model without `native_tools` (its graph describes them in the text)."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.policy or model,
        "messages": [_message(message, extensions) for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.tools and native_tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if extensions:
        body |= {"logprobs": True, "return_token_ids": True}
    return body


def dump(body: dict[str, Any]) -> bytes:
    """A body as JSON. It is written at every turn with the whole conversation in it, so by the
    serializer that is fastest here; text that is not Unicode is left to one that escapes it."""
    try:
        return to_json(body)
    except PydanticSerializationError:
        return json.dumps(body).encode()


def _message(message: Message, extensions: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        body["tool_call_id"] = message.tool_call_id or ""
    elif message.name:
        body["name"] = message.name
    if extensions and message.role == "assistant" and message.token_ids is not None:
        body["token_ids"] = list(message.token_ids)
    return body


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {
        "name": tool.name, "description": tool.description, "parameters": tool.parameters,
    }  # fmt: skip
    return {"type": "function", "function": function}


# --- in -----------------------------------------------------------------------------------------


_MOST = 2**31 - 1
"""Of a count of tokens: no context is near it."""
_ROUNDING = 1e-3
"""By how much a log-prob of a probability of 1 may be above 0, in half precision."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class _Function(_Shape):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(_Shape):
    id: str | None = None
    function: _Function


class _Part(_Shape):
    text: str = ""


class _Reply(_Shape):
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None


class _TokenLogprob(TypedDict):  # one a token: a dict costs half of what a model does
    logprob: float


class _Logprobs(_Shape):
    content: list[_TokenLogprob] | None = None


class _Choice(_Shape):
    message: _Reply
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Cached(_Shape):
    cached_tokens: int | None = None


class _Usage(_Shape):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Billed(_Shape):
    usage: _Usage


class _Answer(_Shape):
    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


_S = TypeVar("_S", bound=_Shape)


def decode(
    data: bytes | dict[str, Any], request: Request, model: str, *, where: str, seconds: float
) -> Completion:
    """The `Completion` in an answer (raw bytes or parsed JSON); `model` and `where` are what was
    asked. Raises a retryable `ModelError` when it holds no reply, and a final one when the request
    named a policy and another model answered: its tokens would be trained on as that policy's."""
    try:
        answer = _read(_Answer, data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        told = f"{at or 'the body'}: {first['msg']}"
        raise faults.unreadable(where, told, _bill(data)) from error
    served = answer.model or request.policy or model
    if request.policy and served != request.policy:
        raise faults.mislabelled(where, request.policy, served, _bill(data))
    choice = answer.choices[0]
    ids = _ids(choice.token_ids)
    prompt = _ids(answer.prompt_token_ids or choice.prompt_token_ids)
    return Completion(
        message=Message(
            role="assistant",
            content=_text(choice.message.content),
            tool_calls=_calls(choice.message.tool_calls or []),
            token_ids=ids,
        ),
        finish_reason=choice.finish_reason or "unknown",
        usage=_usage(answer.usage or _Usage(), prompt, ids),
        model=served,
        policy=request.policy,
        prompt_ids=prompt,
        completion_ids=ids,
        logprobs=_logprobs(choice.logprobs, ids),
        seconds=seconds,
    )


def _read(shape: type[_S], data: bytes | dict[str, Any]) -> _S:
    """What `data` holds, with `?` for half a surrogate pair, which no text can have and no
    checkpoint keeps: a reply that was cut there is one all the same. Raises `ValidationError`."""
    if isinstance(data, bytes):
        with suppress(ValidationError):
            return shape.model_validate_json(data)
    try:
        value = json.loads(data.decode()) if isinstance(data, bytes) else data
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, TypeError, RecursionError):  # no JSON: let the error say where
        if isinstance(data, bytes):
            return shape.model_validate_json(data)
        return shape.model_validate(data)
    return shape.model_validate_json(text)


def _bill(data: bytes | dict[str, Any]) -> tuple[int, int]:
    """The token counts in an answer that is refused."""
    try:
        usage = _usage(_read(_Billed, data).usage, None, None)
    except ValidationError:
        return UNTOLD
    return usage.prompt_tokens, usage.completion_tokens


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def _calls(calls: list[_Call]) -> tuple[ToolCall, ...]:
    """Tool calls with an id each, even where the model left it out or gave one twice."""
    seen: set[str] = set()
    made = []
    for index, call in enumerate(calls):
        name = call.id or "call"
        if not call.id or name in seen:
            name = f"{name}_{index}"
        seen.add(name)
        made.append(
            ToolCall(
                id=name, name=call.function.name, arguments=_arguments(call.function.arguments)
            )
        )
    return tuple(made)


def _arguments(given: str | dict[str, Any] | None) -> dict[str, Json]:
    return read_arguments(json.dumps(given) if isinstance(given, dict) else given or "")


def _ids(given: list[int] | None) -> tuple[int, ...] | None:
    """Token ids; nothing where one of them cannot be an id: no such row could be trained on."""
    if given is None:
        return None
    try:
        array("I", given)  # 32 bits, unsigned: the quickest way to look at all of them
    except OverflowError:
        return None
    return tuple(given)


def _usage(usage: _Usage, prompt: tuple[int, ...] | None, ids: tuple[int, ...] | None) -> Usage:
    """Token counts; where the server gives none that can be one, the lengths of the ids it gave."""

    def count(told: int | None, known: int) -> int:
        return told if told is not None and 0 <= told <= _MOST else known

    details = usage.prompt_tokens_details or _Cached()
    return Usage(
        prompt_tokens=count(usage.prompt_tokens, len(prompt or ())),
        completion_tokens=count(usage.completion_tokens, len(ids or ())),
        cached_tokens=count(details.cached_tokens, 0),
        calls=1,
    )


def _logprobs(given: _Logprobs | None, ids: tuple[int, ...] | None) -> tuple[float, ...] | None:
    """One finite log-prob per id, none above 0 (but for rounding), or nothing: a partial list would
    misalign a training row."""
    if given is None or given.content is None or ids is None:
        return None
    values = tuple(entry["logprob"] for entry in given.content)
    usable = len(values) == len(ids) and all(map(math.isfinite, values))
    return values if usable and max(values, default=0.0) <= _ROUNDING else None
