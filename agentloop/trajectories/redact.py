"""Any JSON value in, the same value out with secrets replaced by `[redacted:NAME]`.

Two detectors: exact values of known secrets (variables of the environment whose names look like
keys), in any of the forms in which they may be written, and the shapes of secrets. The log applies
both on its single write path and the exporter of training rows once more, so that nothing stored,
indexed, exported or trained on can carry what they caught. Token ids spell the text that they
encode: a trajectory or a reply of which any text was replaced loses all its ids and log-probs and
is marked `redacted`, which is what the recorder and the exporter refuse.
"""

from __future__ import annotations

import base64
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from agentloop.records import Completion, Json, Request
from agentloop.trajectories import secret_scan, secret_shapes
from agentloop.trajectories.known_values import MIN_LENGTH, KnownValues
from agentloop.trajectories.secret_shapes import Span

_SECRET_NAME = re.compile(
    r"(?:_|^)(?:KEY|APIKEY|TOKEN|SECRET|PAT|PWD|PASS|PASSPHRASE|COOKIE|DSN|SAS|AUTH"
    r"|WEBHOOK(?:_URL)?|CONNECTION_STRING|CREDENTIALS?)$|PASSWORD|PASSWD",
    re.IGNORECASE,
)
_NOT_SECRET = frozenset({"PWD"})
_IDS = frozenset({"token_ids", "prompt_ids", "completion_ids", "logprobs"})
_CODE = "[A-Za-z0-9+/_-]"
_RUN = rf"{_CODE}{{{secret_scan.RUN},}}(?:(?:\\r|\\n|[\r\n])+{_CODE}{{4,}})*={{0,2}}"
_CODED, _CODED_BYTES = re.compile(_RUN), re.compile(_RUN.encode())
_QUOTED = re.compile(r"(?:[\w.~+-]|%[0-9A-Fa-f]{2}){8,}")
_BREAK = re.compile(r"\\r|\\n|[\r\n]")
_FILE = 4096
"""Longer runs of base64 are files."""
_URLSAFE = str.maketrans("-_", "+/")


class Redactor:
    """Replaces secrets in the strings (and keys) of a JSON value; numbers stay as they are."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        """`secrets` are known values by name; those of under `MIN_LENGTH` characters are not
        replaced."""
        self._known = KnownValues(secrets)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Redactor:
        """Knows the values of all variables named like a secret (`*_KEY`, `*_TOKEN`, `*_SECRET`,
        `*PASSWORD*`, ...), and the passwords in addresses that any variable holds."""
        found: dict[str, str] = {}
        for name, value in environment.items():
            if _SECRET_NAME.search(name) and name not in _NOT_SECRET:
                found[name] = value
            elif (password := _password(value)) is not None:
                found[name] = password
        return cls(found)

    def __call__(self, value: Json) -> Json:
        """The value without secrets, and without the token ids of what held one; `value` itself
        when there are none. A secret that is cut in two is found where its parts are neighbours:
        in one list, under the same keys (chunks of a stream, messages of a conversation)."""
        strings: dict[str, list[str]] = defaultdict(list)
        _collect(value, "", strings)
        clean = {
            path: self._clean(texts, path.rpartition("\0")[2]) for path, texts in strings.items()
        }
        if all(clean[path] is texts for path, texts in strings.items()):
            return value
        keys = dict(zip(strings[_KEY], clean.get(_KEY, ()), strict=True))
        return _rebuild(value, "", {path: iter(texts) for path, texts in clean.items()}, keys)

    def text(self, text: str, key: str = "") -> str:
        """One string without secrets; `key` is what it stands under in an object."""
        return self._clean([text], key)[0]

    def suspects(self, data: bytes) -> bool:
        """Whether a value whose JSON (or text) is `data` must be looked at; false for nearly all
        that has no secret. Cheap: this is what the write path pays for."""
        return self._known.suspects(data) or self._shaped(data)

    def suspects_each(self, many: Sequence[bytes]) -> list[bool]:
        """`suspects` of each; cheaper than one by one, as known values are looked for in all at
        once."""
        if self._known.suspects(b"".join(many)):
            return [self.suspects(data) for data in many]
        return [self._shaped(data) for data in many]

    def _shaped(self, data: bytes) -> bool:
        """Whether a secret's shape may be in `data`, as it is or in base64."""
        marked, coded = secret_scan.suspicious(data)
        return marked or (
            coded and any(self._hides(run[0].decode()) for run in _CODED_BYTES.finditer(data))
        )

    def _clean(self, texts: list[str], key: str = "") -> list[str]:
        """Neighbours, which stand under `key` in their objects, without secrets; `texts` itself
        when there are none."""
        named = secret_shapes.names_one(key)
        if not named and not self.suspects("\0".join(texts).encode("utf-8", "surrogatepass")):
            return texts
        ends = list(accumulate(map(len, texts)))
        found = [*self._known.spans(texts)] if self._known else []
        if len(texts) > 1:
            found += _across("".join(texts), ends)
        for end, text in zip(ends, texts, strict=True):
            start = end - len(text)
            told = secret_shapes.entry_spans(key, text) if named else ()
            own = (*secret_shapes.spans(text), *self._codes(text), *told)
            found += [(start + one, start + two, name) for one, two, name in own]
        return _cut(texts, ends, _merged(found)) if found else texts

    def _codes(self, text: str) -> Iterator[Span]:
        for run in _CODED.finditer(text):
            if self._hides(run[0]):
                yield run.start(), run.end(), "base64"
        for run in _QUOTED.finditer(text):
            if "%" in run[0] and self._finds(unquote_plus(run[0])):
                yield run.start(), run.end(), "url_encoded"

    def _hides(self, code: str) -> bool:
        """Whether a run of base64 has a secret in it."""
        code = _BREAK.sub("", code).rstrip("=").translate(_URLSAFE)
        # What stands before it may look like a part of it (a word, the `n` of an escaped newline);
        # a file that is embedded begins where it begins.
        for offset in range(4 if len(code) <= _FILE else 1):
            part = code[offset:]
            part = part[:-1] if len(part) % 4 == 1 else part  # six bits are no byte
            data = base64.b64decode(part + "=" * (-len(part) % 4))
            near = self._known.suspects(data) or secret_scan.suspicious(data)[0]
            if near and self._finds(data.decode("utf-8", "replace")):
                return True
        return False

    def _finds(self, text: str) -> bool:
        return bool((*self._known.spans([text]), *secret_shapes.spans(text)))


def guarded(request: Request, completion: Completion, redact: Redactor) -> Completion:
    """`completion` as it may be recorded: without ids and log-probs, and marked, when the prompt
    or the reply holds a secret. Its text is left to the log, because the agent may need it."""
    if completion.prompt_ids is None and completion.completion_ids is None:
        return completion
    messages = (*request.messages, completion.message)
    texts = [message.content for message in messages]
    calls = [call.arguments for message in messages for call in message.tool_calls]
    told = [[tool.description, tool.parameters, tool.examples] for tool in request.tools]
    text = "\n".join(texts) + (repr(calls) if calls else "") + (repr(told) if told else "")
    if not redact.suspects(text.encode("utf-8", "surrogatepass")):
        return completion
    value: Any = [texts, calls, told]
    if redact(value) is value:
        return completion
    return replace(
        completion, prompt_ids=None, completion_ids=None, logprobs=None, redacted=True,
        message=replace(completion.message, token_ids=None),
    )  # fmt: skip


_KEY = "keys"
"""Where the keys of all objects are collected; every path begins with a NUL, or is empty."""


def _collect(value: Json, path: str, strings: dict[str, list[str]]) -> None:
    """Every string under its path without the numbers of lists, in order."""
    if isinstance(value, str):
        strings[path].append(value)
    elif isinstance(value, dict):
        strings[_KEY] += value
        for key, item in value.items():
            _collect(item, f"{path}\0{key}", strings)
    elif isinstance(value, list) and not _numbers(value):
        for item in value:
            _collect(item, path, strings)


def _rebuild(
    value: Json, path: str, clean: Mapping[str, Iterator[str]], keys: Mapping[str, str]
) -> Json:
    """`value` with the strings of `clean`; parts in which nothing changed are the same objects."""
    if isinstance(value, str):
        return next(clean[path])
    if isinstance(value, list) and not _numbers(value):
        items = [_rebuild(item, path, clean, keys) for item in value]
        same = all(map(_same, items, value))
        return value if same else items
    if isinstance(value, dict):
        made = {
            keys.get(key, key): _rebuild(item, f"{path}\0{key}", clean, keys)
            for key, item in value.items()
        }
        if all(map(_same, made.values(), value.values())) and made.keys() == value.keys():
            return value
        if "nodes" in made or ("message" in made and "usage" in made):
            return {**_bare(made), "redacted": True}  # a `Trajectory`, a `Completion`
        return made
    return value


def _same(one: Json, other: Json) -> bool:
    return one is other or (isinstance(one, str) and one == other)


def _bare(value: Any) -> Any:
    """Without token ids and log-probs."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key not in _IDS}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Sequence[Json]) -> bool:
    """Token ids and log-probs: long, and never secret text."""
    return not set(map(type, value)) - {int, float}


def _across(joined: str, ends: Sequence[int]) -> Iterator[Span]:
    """Keys with a prefix of their own that begin in one text and end in another."""
    blocks = ((found, "private_key") for found in secret_shapes.BLOCK.finditer(joined))
    keys = ((found, str(found.lastgroup)) for found in secret_shapes.KEY.finditer(joined))
    # One without an end would be all the texts that follow.
    for found, name in (*blocks, *(key for key in keys if key[1] != "private_key")):
        if any(found.start() < end < found.end() for end in ends):
            yield found.start(), found.end(), name


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order that do not overlap; of two that did, the union is named after the first
    and longest."""
    merged: list[Span] = []
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        if merged and start < merged[-1][1]:
            before = merged.pop()
            merged.append((before[0], max(end, before[1]), before[2]))
        else:
            merged.append((start, end, name))
    return merged


def _cut(texts: Sequence[str], ends: Sequence[int], spans: Sequence[Span]) -> list[str]:
    """The texts with each span of their join replaced; one that crosses a border leaves its name
    on both sides."""
    made = []
    for end, text in zip(ends, texts, strict=True):
        start = end - len(text)
        at, parts = 0, []
        for first, last, name in spans:
            if first < end and last > start:
                parts += [text[at : max(first - start, 0)], f"[redacted:{name}]"]
                at = last - start
        made.append("".join((*parts, text[at:])) if parts else text)
    return made


def _password(value: str) -> str | None:
    """The password in an address, where it is long enough to be looked for."""
    if "://" not in value or "@" not in value:
        return None
    try:
        password = urlsplit(value).password
    except ValueError:
        return None
    return password if password and len(password) >= MIN_LENGTH else None
