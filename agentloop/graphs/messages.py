"""Chat messages in the three forms that meet in a graph, and the conversions between them.

`Message` is our record; a dict in the OpenAI chat format is what a JSON state holds; a LangChain
message is what a stock agent's state holds. Conversion keeps text, tool calls and their ids.
"""

from __future__ import annotations

import json
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.messages import ToolMessage as LangChainToolMessage

from agentloop.errors import UsageError
from agentloop.records import Completion, Message, ToolCall

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system", "developer": "system", "human": "user", "user": "user",
    "ai": "assistant", "assistant": "assistant", "tool": "tool",
}  # fmt: skip


def to_message(value: object) -> Message:
    """A `Message` from a dict, a LangChain message or a `Message`; raises `UsageError`."""
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
        tool_call_id=value.get("tool_call_id"),
        name=value.get("name"),
    )


def _call(value: dict[str, Any]) -> ToolCall:
    function = value.get("function", value)
    arguments = function.get("arguments", function.get("args", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise UsageError(f"arguments of a tool call are not JSON: {error}") from None
    return ToolCall(id=str(value.get("id") or ""), name=str(function["name"]), arguments=arguments)


def _from_langchain(message: BaseMessage) -> Message:
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise UsageError(f"messages of type `{message.type}` are not supported")
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return Message(
        role=role,
        content=message.text,
        tool_calls=tuple(
            ToolCall(id=call["id"] or "", name=call["name"], arguments=call["args"])
            for call in calls
        ),
        tool_call_id=message.tool_call_id if isinstance(message, LangChainToolMessage) else None,
        name=message.name,
    )
