"""Chat messages in, token ids out: the one rendering that engine, trainer and exporter share.

The decision worth knowing: an assistant message that carries `token_ids` (what the engine really
sampled) is spliced verbatim and never re-tokenised, so the prompt of turn n+1 begins with exactly
the prompt ids and completion ids of turn n. What a message says counts as no special token, so
content that spells `<|im_end|>` cannot forge a turn: under ChatML it is encoded as data, under any
other template the result is judged (`template_text`).

No torch and no transformers here: a tokenizer is anything that satisfies `Tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

from agentloop.trajectories.template_text import (
    FORGING,
    Judge,
    Tokenizer,
    encode_data,
    mark_of,
    seed_of,
)

__all__ = [
    "ChatMessage",
    "Rendered",
    "Tokenizer",
    "end_of_turn",
    "render",
    "render_chat",
    "text_of",
]

ChatMessage = Mapping[str, object]
"""`{role, content, token_ids?, tool_calls?}` as plain JSON types."""

START, END = "<|im_start|>", "<|im_end|>"
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # Templates of small models know no tool role; a result is then what the user says next.
    "tool": "user",
    "developer": "system",
}
_TURNS_RENDERED = 50_000
"""At most so many turns are rendered again, about 1 s, to see how a template rewrites messages."""
_PROBE = (
    {"role": "system", "content": " a \n"},
    {"role": "user", "content": "\n b "},
    {"role": "assistant", "content": " c "},
    {"role": "user", "content": "d"},
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ids` of a prompt; `drift` is true when sampled ids had to be re-tokenised from text, so the
    prompt need not begin with what the model saw and said before."""

    ids: list[int]
    drift: bool = False


@dataclass(frozen=True, slots=True)
class _ChatML:
    start: int
    end: int
    default_system: str | None


def render(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation; see `render_chat` for whether ids were spliced exactly."""
    return render_chat(tokenizer, messages, add_generation_prompt).ids


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
) -> Rendered:
    """Token ids of `messages`, with the opening of an assistant turn when asked.

    For plain conversations the ids equal `tokenizer.apply_chat_template`. Raises `ValueError` on
    an empty conversation, a message without a known role, a tokenizer without a chat template, or
    content that spells special tokens which cannot be kept apart and so could forge a turn.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    if not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template; send token ids instead")
    plain = [_plain(message) for message in messages]
    chatml = _chatml(tokenizer)
    if chatml is not None:
        return Rendered(_piecewise(tokenizer, chatml, plain, add_generation_prompt))
    return _spliced(tokenizer, plain, add_generation_prompt)


def text_of(content: object) -> object:
    """OpenAI's list of text parts as one text; anything else as it is. Raises `ValueError` when
    a part is not text."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    if len(parts) != len(content) or not all(isinstance(part, str) for part in parts):
        raise ValueError("only text content is supported")
    return "".join(str(part) for part in parts)


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The id that ends an assistant's turn in a ChatML model, else `None`."""
    chatml = _chatml(tokenizer) if tokenizer.chat_template else None
    return None if chatml is None else chatml.end


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    content: str
    token_ids: tuple[int, ...] | None


def _plain(message: ChatMessage) -> _Message:
    role, content, ids = message.get("role"), message.get("content"), message.get("token_ids")
    if not isinstance(role, str) or not role:
        raise ValueError("every message needs a `role`")
    if role not in _ROLES:
        raise ValueError(f"a message has the role {role[:40]!r}; allowed are {', '.join(_ROLES)}")
    if content is not None and not isinstance(content, str):
        raise ValueError(f"the content of a {role} message must be text")
    text = content or ""
    calls = message.get("tool_calls")
    if calls and ids is None:
        text = "\n".join(filter(None, [text, *map(_tool_call, cast(Sequence[object], calls))]))
    exact = None if ids is None or role != "assistant" else _ids(ids)
    return _Message(_ROLES[role], text, exact)


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise ValueError("`token_ids` must be a list of integers")
    return tuple(value)


def _tool_call(call: object) -> str:
    data = dict(cast(Mapping[str, object], call))
    function = data.get("function", data)
    fields = dict(cast(Mapping[str, object], function))
    arguments = fields.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI sends arguments as a JSON text
        arguments = json.loads(arguments or "{}")
    body = json.dumps({"name": fields.get("name"), "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _text(tokenizer: Tokenizer, messages: Sequence[_Message], open_turn: bool) -> str:
    given = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=open_turn)


def _piecewise(
    tokenizer: Tokenizer, chatml: _ChatML, messages: Sequence[_Message], open_turn: bool
) -> list[int]:
    newline = encode_data(tokenizer, "\n")
    out: list[int] = []
    if messages[0].role != "system" and chatml.default_system is not None:
        messages = [_Message("system", chatml.default_system, None), *messages]
    for message in messages:
        out.append(chatml.start)
        if message.token_ids is None:
            out += encode_data(tokenizer, f"{message.role}\n{message.content}")
            out.append(chatml.end)
        else:
            out += encode_data(tokenizer, "assistant\n")
            out += message.token_ids
            if not message.token_ids or message.token_ids[-1] != chatml.end:
                out.append(chatml.end)
        out += newline
    if open_turn:
        out += [chatml.start, *encode_data(tokenizer, "assistant\n")]
    return out


def _chatml(tokenizer: Tokenizer) -> _ChatML | None:
    """How this tokenizer speaks ChatML, or `None` when its template does something else."""
    start, end = tokenizer.convert_tokens_to_ids(START), tokenizer.convert_tokens_to_ids(END)
    if start is None or end is None or start == end or START not in (tokenizer.chat_template or ""):
        return None
    return _probe(_Key(tokenizer, tokenizer.chat_template or "", start, end))


@dataclass(frozen=True, slots=True)
class _Key:
    tokenizer: Tokenizer
    template: str
    start: int
    end: int

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.template))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Key)
            and other.tokenizer is self.tokenizer
            and other.template == self.template
        )


@lru_cache(maxsize=8)
def _probe(key: _Key) -> _ChatML | None:
    # Rendering a known conversation is the only way to know what a Jinja template does.
    render = key.tokenizer.apply_chat_template
    full = render(_PROBE, tokenize=False, add_generation_prompt=True)
    if full != _spell(_PROBE):
        return None
    alone = render(_PROBE[3:], tokenize=False, add_generation_prompt=True)
    tail = _spell(_PROBE[3:])
    head = f"{START}system\n"
    if alone == tail:
        return _ChatML(key.start, key.end, None)
    if not (alone.endswith(tail) and alone.startswith(head)):
        return None
    system = alone[len(head) : -len(tail)].removesuffix(f"{END}\n")
    return _ChatML(key.start, key.end, system)


def _spell(messages: Sequence[Mapping[str, str]]) -> str:
    turns = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
    return f"{turns}{START}assistant\n"


def _spliced(tokenizer: Tokenizer, messages: Sequence[_Message], open_turn: bool) -> Rendered:
    """Any other template: splice sampled ids where its text of a prefix is a prefix of its text."""
    text = _text(tokenizer, messages, open_turn)
    seed = seed_of("".join(message.content for message in messages) + text)
    marked = [
        replace(message, content=mark_of(seed, number))
        if message.token_ids is None and message.content.strip()
        else message
        for number, message in enumerate(messages)
    ]
    blank = _text(tokenizer, marked, open_turn)
    tries = iter(range(_TURNS_RENDERED // len(messages)))

    def alone(number: int) -> str:
        if next(tries, None) is None:  # many more would hold up a server
            raise ValueError(FORGING)
        one = [*marked[:number], messages[number], *marked[number + 1 :]]
        shown = _text(tokenizer, one, open_turn)
        mark = mark_of(seed, number)
        longer = (len(shown) - len(blank)) // blank.count(mark)
        at = blank.find(mark)
        return shown[at : max(at, at + len(mark) + longer)]

    stretches = _stretches(tokenizer, messages, text)
    templates = _stretches(tokenizer, marked, blank)
    if stretches is None or templates is None:
        plain = [replace(message, token_ids=None) for message in messages]
        return Rendered(_spliced(tokenizer, plain, open_turn).ids, drift=True)
    judge = Judge(tokenizer, seed, [message.content for message in messages], alone)
    spliced = [message.token_ids for message in messages if message.token_ids is not None]
    out: list[int] = []
    for stretch, template, ids in zip(stretches, templates, [*spliced, ()], strict=True):
        out += judge.ids(stretch, template)
        out += ids
    return Rendered(out)


def _stretches(tokenizer: Tokenizer, messages: Sequence[_Message], text: str) -> list[str] | None:
    """What `text` holds before, between and after the messages with ids, or `None` when it does
    not hold them as they were said."""
    out: list[str] = []
    cursor = 0
    for index, message in enumerate(messages):
        if message.token_ids is None:
            continue
        before = _text(tokenizer, messages[:index], True) if index else ""
        said = next(
            (c for c in (message.content, message.content.strip()) if text.startswith(before + c)),
            None,
        )
        if said is None or len(before) < cursor:
            return None
        out.append(text[cursor : len(before)])
        cursor = len(before) + len(said)
        last = tokenizer.decode(message.token_ids[-1:]) if message.token_ids else ""
        if last and text.startswith(last, cursor) and not said.endswith(last):
            cursor += len(last)  # the end token was sampled; the template need not add it again
    return [*out, text[cursor:]]
