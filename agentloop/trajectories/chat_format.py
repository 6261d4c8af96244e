"""Chat messages in, token ids out: the one rendering that engine, trainer and exporter share.

The decision worth knowing: an assistant message that carries `token_ids` (what the engine really
sampled) is spliced verbatim and never re-tokenised, so the prompt of turn n+1 begins with exactly
the prompt ids and completion ids of turn n. What a message says is encoded with special tokens
disabled, so content that spells `<|im_end|>` cannot forge a turn, under any template.

No torch and no transformers here: a tokenizer is anything that satisfies `Tokenizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol, cast

ChatMessage = Mapping[str, object]
"""`{role, content, token_ids?, tool_calls?}` as plain JSON types."""

START, END = "<|im_start|>", "<|im_end|>"
_REWRITTEN = (
    "a message spells special tokens of this model, and its chat template rewrites what is said,"
    " so it could forge a turn; send token ids instead, or text without those"
)
_PROBE = (
    {"role": "system", "content": " a \n"},
    {"role": "user", "content": "\n b "},
    {"role": "assistant", "content": " c "},
    {"role": "user", "content": "d"},
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that rendering needs."""

    chat_template: str | None

    def encode(
        self, text: str, *, add_special_tokens: bool = ..., split_special_tokens: bool = ...
    ) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`."""
        ...

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token."""
        ...

    def apply_chat_template(
        self, messages: Sequence[ChatMessage], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The template's text."""
        ...


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
    an empty conversation, a message without role, a tokenizer without a chat template, or content
    that spells special tokens under a template that rewrites it, which could forge a turn.
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
    if content is not None and not isinstance(content, str):
        raise ValueError(f"the content of a {role} message must be text")
    text = content or ""
    calls = message.get("tool_calls")
    if calls and ids is None:
        text = "\n".join(filter(None, [text, *map(_tool_call, cast(Sequence[object], calls))]))
    exact = None if ids is None or role != "assistant" else _ids(ids)
    # Templates of small models know no tool role; a result is then what the user says next.
    return _Message({"tool": "user", "developer": "system"}.get(role, role), text, exact)


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


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text that is data: special tokens spelled in it stay text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def _piecewise(
    tokenizer: Tokenizer, chatml: _ChatML, messages: Sequence[_Message], open_turn: bool
) -> list[int]:
    newline = _encode(tokenizer, "\n")
    out: list[int] = []
    if messages[0].role != "system" and chatml.default_system is not None:
        messages = [_Message("system", chatml.default_system, None), *messages]
    for message in messages:
        out.append(chatml.start)
        if message.token_ids is None:
            out += _encode(tokenizer, f"{message.role}\n{message.content}")
            out.append(chatml.end)
        else:
            out += _encode(tokenizer, "assistant\n")
            out += message.token_ids
            if not message.token_ids or message.token_ids[-1] != chatml.end:
                out.append(chatml.end)
        out += newline
    if open_turn:
        out += [chatml.start, *_encode(tokenizer, "assistant\n")]
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
    forging = _forging(tokenizer, messages, open_turn, text)
    out: list[int] = []
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
            return Rendered(_stretch(tokenizer, text, (0, len(text)), forging), drift=True)
        out += _stretch(tokenizer, text, (cursor, len(before)), forging)
        out += message.token_ids
        cursor = len(before) + len(said)
        last = tokenizer.decode(message.token_ids[-1:]) if message.token_ids else ""
        if last and text.startswith(last, cursor) and not said.endswith(last):
            cursor += len(last)  # the end token was sampled; the template need not add it again
    return Rendered(out + _stretch(tokenizer, text, (cursor, len(text)), forging))


def _stretch(
    tokenizer: Tokenizer, text: str, part: tuple[int, int], forging: Sequence[tuple[int, int]]
) -> list[int]:
    """Ids of that part of the template's text: its own special tokens count, those spelled within
    a `forging` span do not."""
    cursor, stop = part
    out: list[int] = []
    for start, end in forging:
        if cursor <= start and end <= stop:
            out += tokenizer.encode(text[cursor:start], add_special_tokens=False)
            out += _encode(tokenizer, text[start:end])
            cursor = end
    return out + tokenizer.encode(text[cursor:stop], add_special_tokens=False)


def _forging(
    tokenizer: Tokenizer, messages: Sequence[_Message], open_turn: bool, text: str
) -> list[tuple[int, int]]:
    """Where in the template's `text` stand contents that spell special tokens. Found with a mark
    in the place of each; only such contents are encoded apart, since a tokenizer may join the
    characters at a border and plain conversations must equal the template's ids."""
    spelled = [
        message
        for message in messages
        if _encode(tokenizer, message.content)
        != tokenizer.encode(message.content, add_special_tokens=False)
    ]
    if not spelled:
        return []
    # A text cannot hold its own digest, however it was chosen.
    mark = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() + "-"
    marked = [
        replace(message, content=f"{mark}{spelled.index(message)}.")
        if message in spelled
        else message
        for message in messages
    ]
    first, *others = re.split(f"{mark}([0-9]+)[.]", _text(tokenizer, marked, open_turn))
    spans: list[tuple[int, int]] = []
    end = len(first) if text.startswith(first) else -1
    for number, piece in zip(others[::2], others[1::2], strict=True):
        content = spelled[int(number)].content
        said = [c for c in (content, content.strip()) if text.startswith(c + piece, end)]
        if end < 0 or not said:
            raise ValueError(_REWRITTEN)
        spans.append((end, end + len(said[0])))
        end += len(said[0]) + len(piece)
    if end != len(text):
        raise ValueError(_REWRITTEN)
    return spans
