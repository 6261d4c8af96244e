"""What `--model scripted` plays: a model that calls the Python tool once it has seen an example.

Goes in: a request. Comes out: a reply, decided by the request alone. It stands in for a small
model: without a worked example in its prompt it answers from its head, and wrong; one task in
three tempts it to use the tool anyway, which is how the first success comes about.
"""

from __future__ import annotations

import re

from agentloop.records import Message, Request


def replies(request: Request) -> str:
    """The reply to `request`."""
    shown = any(message.name == "example" for message in request.messages)
    last = request.messages[-1]
    if "<instruction>" in last.content:
        return "<instruction>\nUse the python tool for every calculation.\n</instruction>"
    output = _output(last)
    if output is not None:
        return f"Answer: {output}"
    numbers = re.findall(r"\d+", last.content)
    tempted = sum(map(int, numbers)) % 3 == 0
    if len(numbers) < 2 or not (shown or tempted or request.policy):
        return "Answer: 42"
    return f"```python\nprint({' * '.join(numbers)})\n```"


def _output(message: Message) -> str | None:
    found = re.fullmatch(r"Output:\n(.*)", message.content.strip(), re.S)
    return found[1].strip() if found else None
