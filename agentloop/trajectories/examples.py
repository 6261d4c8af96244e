"""Worked examples: the one place that words a trajectory as text that a model may learn from.

Goes in: an episode. Comes out: question, calls, outputs and final answer as plain text, and back
again the code blocks with what they printed (`code_blocks`), so that an example can be re-run.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator

from agentloop.records import Episode, Message, ToolCall

_HEADING = re.compile(r"^Output(?: of \w+)?:[ \t]*\n")
_FENCE = re.compile(r"^[ \t]*```", re.M)
_KEPT = "\n\t\u200c\u200d"  # some scripts and emoji are joined by the last two
_CODE = re.compile(r"^```\w*\n(.*?)^```\s*\n\s*Output:\n(.*?)(?=\n\nAssistant:\n|\Z)", re.M | re.S)


EXAMPLE = "example"
"""`Message.name` of a turn that was lent: it is shown to the model and never learned from."""
_EXAMPLE = re.compile(
    r"^Question: (?P<question>.*?)\n\n(?P<turns>Assistant:\n.*?)(?=\n\nQuestion: |\n\n#+ |\Z)",
    re.M | re.S,
)
_TURN = re.compile(r"(Assistant|Output):\n(.*?)(?=\n\n(?:Assistant|Output):\n|\Z)", re.S)
_EMPTY_HEADING = re.compile(r"^#+ [^\n]*\n+(?=#+ |\Z)", re.M)


def split_turns(text: str) -> tuple[str, tuple[Message, ...]]:
    """`text` without its worked examples, and these as chat turns.

    A small model imitates turns more than it follows text: with two examples as turns it calls a
    tool on most tasks, with two in its system message on less than half, and in no usable form.
    """
    turns: list[Message] = []
    for found in _EXAMPLE.finditer(text):
        turns.append(Message(role="user", content=found["question"].strip(), name=EXAMPLE))
        for heading, words in _TURN.findall(found["turns"]):
            if heading == "Assistant":
                turns.append(Message(role="assistant", content=words.strip(), name=EXAMPLE))
            else:
                content = f"Output:\n{words.strip()}"
                turns.append(Message(role="user", content=content, name=EXAMPLE))
    if not turns:
        return text, ()
    rest = re.sub(r"\n{3,}", "\n\n", _EXAMPLE.sub("", text)).strip() + "\n"
    while (shorter := _EMPTY_HEADING.sub("", rest)) != rest:
        rest = shorter
    return rest.strip(), tuple(turns)


def conversation(episode: Episode) -> list[Message]:
    """The messages of the first trainable trajectory from its root to its newest node, without
    system messages and lent examples; empty when there is none."""
    nodes = next((one.nodes for one in episode.trajectories if one.trainable), ())
    branch: list[Message] = []
    at = len(nodes) - 1 if nodes else None
    while at is not None:
        branch.append(nodes[at].message)
        at = nodes[at].parent
    return [one for one in reversed(branch) if one.role != "system" and one.name != EXAMPLE]


def turns(episode: Episode) -> list[Message]:
    """The conversation from the model's first reply on."""
    messages = conversation(episode)
    roles = [message.role for message in messages]
    return messages[roles.index("assistant") :] if "assistant" in roles else []


def uses_tools(episode: Episode) -> bool:
    """Whether anything was sent back to the model between its replies."""
    return any(message.role != "assistant" for message in turns(episode))


def format_example(episode: Episode) -> str:
    """The episode as a worked example, ending with the model's final reply; empty when the model
    never replied. The model's words are verbatim, since it will imitate them to the letter."""
    replies = turns(episode)
    if not replies:
        return ""
    parts = [f"Question: {episode.task.prompt.strip()}"]
    for message in replies:
        if message.role == "assistant":
            parts.append(f"Assistant:\n{_words(message)}")
        else:
            parts.append(f"Output:\n{_HEADING.sub('', message.content).strip()}")
    return clean("\n\n".join(parts))


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(code, output) for each fenced block in `text` (worked examples) that an output follows."""
    return [(code.rstrip("\n"), output.strip()) for code, output in _CODE.findall(text)]


def _words(message: Message) -> str:
    """The content, then those calls that it does not spell out itself. A fence that an engine
    left open by stopping at it is closed, since an open one would swallow what follows."""
    text = "\n".join(_lines(message)).strip()
    return f"{text}\n```" if len(_FENCE.findall(text)) % 2 else text


def _lines(message: Message) -> Iterator[str]:
    if message.content.strip():
        yield message.content.strip()
    for call in message.tool_calls:
        if not _spelled(call, message.content):
            yield _call(call)


def _spelled(call: ToolCall, content: str) -> bool:
    texts = [value.strip() for value in call.arguments.values() if isinstance(value, str)]
    return bool(texts) and all(text in content for text in texts)


def _call(call: ToolCall) -> str:
    """A call with one text argument (code, a query) as a fenced block, any other as JSON."""
    values = list(call.arguments.values())
    if len(values) == 1 and isinstance(values[0], str):
        return f"```{call.name}\n{values[0].strip()}\n```"
    return f"```{call.name}\n{json.dumps(call.arguments, ensure_ascii=False)}\n```"


def clean(text: str) -> str:
    """Without control characters (new lines and tabs stay), invisible format characters, lone
    surrogates and outer white space: what may become part of an instruction or a skill."""
    text = text.replace("\r\n", "\n")
    kept = (c for c in text if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "".join(kept).strip()
