"""Chat messages in the three forms that meet in a graph, and the conversions between them.

`Message` is our record; a dict in the OpenAI chat format is what a JSON state holds; a LangChain
message is what a stock agent's state holds. Conversion keeps text, tool calls and their ids; a
part that our records cannot hold (an image, audio) is refused, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.messages import ToolMessage as LangChainToolMessage

from agentloop.errors import UsageError
from agentloop.records import Completion, Message, ToolCall
from agentloop.trajectories.arguments import read_arguments

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system", "developer": "system", "human": "user", "user": "user",
    "ai": "assistant", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
_BESIDE = frozenset(
    {"reasoning", "reasoning_content", "thinking", "redacted_thinking", "tool_use", "tool_call",
     "tool_call_chunk", "invalid_tool_call", "function_call"}
)  # fmt: skip
"""Parts of an assistant's content that are left out: thoughts, which no model is told again, and
calls, which a message has in `tool_calls` as well."""


def to_message(value: object) -> Message:
    """A `Message` from a dict, a LangChain message or a `Message`. Raises `UsageError` for anything
    else, and for content that is not text."""
    if isinstance(value, Message):
        return value
    if isinstance(value, dict):
        content = value.get("content")
        if content is None or isinstance(content, str):
            return _from_dict(value)
    if isinstance(value, BaseMessage):
        return _from_langchain(value)
    try:
        return _from_langchain(convert_to_messages([cast(Any, value)])[0])
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"`{str(value)[:80]}` is not a chat message: {error}") from None


def to_dict(message: Message) -> dict[str, Any]:
    """The OpenAI chat format, JSON types only."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        data["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        data["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        data["name"] = message.name
    return data


def to_langchain(completion: Completion) -> AIMessage:
    """A reply as LangChain sees it, with usage and finish reason."""
    message, usage = completion.message, completion.usage
    return AIMessage(
        content=message.content,
        tool_calls=[
            {"name": call.name, "args": dict(call.arguments), "id": call.id, "type": "tool_call"}
            for call in message.tool_calls
        ],
        usage_metadata={
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.tokens,
        },
        response_metadata={
            "finish_reason": completion.finish_reason,
            "model_name": completion.model,
        },
    )


def _from_dict(value: dict[str, Any]) -> Message:
    role = _ROLES.get(str(value.get("role", value.get("type"))))
    if role is None:
        raise UsageError(f"`{str(value)[:80]}` is not a chat message: it has no known role")
    calls = value.get("tool_calls")
    return Message(
        role=role,
        content=value.get("content") or "",
        tool_calls=tuple(map(_call, calls)) if calls else (),
        tool_call_id=_word(value.get("tool_call_id")),
        name=_word(value.get("name")),
    )


def _word(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _call(value: object) -> ToolCall:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict) or not isinstance(name, str):
        raise UsageError(f"`{str(value)[:80]}` is not a tool call: it has no name")
    arguments = function.get("arguments", function.get("args"))
    if isinstance(arguments, str):
        arguments = read_arguments(arguments)
    elif not isinstance(arguments, dict | None):
        raise UsageError(f"the arguments of the tool call `{name}` must be an object, or its JSON")
    return ToolCall(id=str(value.get("id") or ""), name=name, arguments=arguments or {})


def _from_langchain(message: BaseMessage) -> Message:
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise UsageError(f"messages of type `{message.type}` are not supported")
    return Message(
        role=role,
        content=message.content if isinstance(message.content, str) else _text(message, role),
        tool_calls=_calls(message) if isinstance(message, AIMessage) else (),
        tool_call_id=message.tool_call_id if isinstance(message, LangChainToolMessage) else None,
        name=message.name,
    )


def _calls(message: AIMessage) -> tuple[ToolCall, ...]:
    calls = [
        ToolCall(id=call["id"] or "", name=call["name"], arguments=call["args"])
        for call in message.tool_calls
    ]
    for spoilt in message.invalid_tool_calls:  # LangChain's for arguments that are no JSON object
        call = {**spoilt, "arguments": spoilt["args"] or "", "name": spoilt["name"] or ""}
        calls.append(_call(call))
    return tuple(calls)


def _text(message: BaseMessage, role: str) -> str:
    """Of content in parts."""
    parts: Sequence[str | dict[str, Any]] = message.content
    texts: list[str] = []
    for part in parts:
        kind = "text" if isinstance(part, str) else str(part.get("type", "text"))
        text = part if isinstance(part, str) else part.get("text")
        if kind == "text" and isinstance(text, str):
            texts.append(text)
        elif role != "assistant" or kind not in _BESIDE:
            raise UsageError(
                f"a message of role `{role}` has a part of type `{kind}`, and the models here read "
                "text alone; leave it out, or put it into words"
            )
    return "".join(texts)
