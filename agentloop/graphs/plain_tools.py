"""Function calling for a model that has none: tools are described in text, calls are read from it.

In: a `Request` with tools. Out: a `Completion` whose message has `tool_calls`, beside the text as
it was sampled. Decision: what the model below sees and what is recorded is text only, so an
agent's calls and results go back as the very text that was sampled and as `Output:` turns; nothing
sampled is worded anew.
"""

from __future__ import annotations

import json
from dataclasses import replace

from agentloop.graphs.text import find_call
from agentloop.ports import Model
from agentloop.records import Completion, Message, Request, ToolSpec

_HOW = """\
Tools:
{tools}

To use a tool, write a fenced block named after it, with its arguments as a JSON object:
```{name}
{example}
```
You will then see its output."""


class PlainTools:
    """A `ports.Model` for one rollout, over a model that calls tools in plain text."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._sampled: dict[str, str] = {}
        """By the id of a call, the text that it was read from."""
        self._native: set[str] = set()
        """Ids of calls that the model below did make as such."""

    async def complete(self, request: Request) -> Completion:
        """One reply; raises what the model raises."""
        messages = tuple(self._plain(message) for message in request.messages)
        if request.tools:
            messages = _told(messages, describe(request.tools))
        completion = await self._model.complete(replace(request, messages=messages, tools=()))
        self._native |= {call.id for call in completion.message.tool_calls}
        call = find_call(completion.message.content, request.tools)
        if call is None or completion.message.tool_calls:
            return completion
        call = replace(call, id=f"call_{len(self._sampled)}")
        self._sampled[call.id] = completion.message.content
        return replace(
            completion,
            message=replace(completion.message, tool_calls=(call,)),
            finish_reason="tool_calls",
        )

    def _plain(self, message: Message) -> Message:
        ids = {message.tool_call_id, *(call.id for call in message.tool_calls)}
        if ids & self._native:
            return message
        if message.role == "tool":
            return Message(role="user", content=f"Output:\n{message.content}")
        if not message.tool_calls:
            return message
        sampled = self._sampled.get(message.tool_calls[0].id)
        if sampled is None:  # a call that no model here made: the agent's own example
            blocks = [
                f"```{call.name}\n{json.dumps(call.arguments)}\n```" for call in message.tool_calls
            ]
            sampled = "\n".join((*filter(None, (message.content,)), *blocks))
        return replace(message, content=sampled, tool_calls=())


def describe(tools: tuple[ToolSpec, ...]) -> str:
    """What a model is told of `tools`: name, description, parameters, and how to call one."""
    lines = []
    for tool in tools:
        about = " ".join(tool.description.split())
        lines.append(f"- {tool.name}: {about} Arguments: {json.dumps(_properties(tool))}")
    example = json.dumps(dict.fromkeys(_properties(tools[0]), "..."))
    return _HOW.format(tools="\n".join(lines), name=tools[0].name, example=example)


def _properties(tool: ToolSpec) -> dict[str, object]:
    properties = tool.parameters.get("properties")
    return dict(properties) if isinstance(properties, dict) else {}


def _told(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """`text` after the agent's own system message, or as one."""
    if messages and messages[0].role == "system":
        own = messages[0].content
        return (replace(messages[0], content=f"{own}\n\n{text}" if own else text), *messages[1:])
    return (Message(role="system", content=text), *messages)
