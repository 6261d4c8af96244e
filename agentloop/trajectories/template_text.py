"""A chat template's text to token ids: its own special tokens count, those a message spells do not.

In goes the template's text twice, as it is and with a mark in the place of what each message
says; out come ids whose special tokens are exactly those of the marked text. The decision worth
knowing: the result is judged, not the messages, since a template may delete or join what is said
and so make a special token of harmless parts. Only what spells one is encoded apart, because a
tokenizer may join characters at a border and plain conversations must equal the template's ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

FORGING = (
    "a message spells special tokens of this model, and they cannot be told from those of its chat"
    " template, so it could forge a turn; send token ids instead, or text without those"
)
_RARE = "\U0010fffd"  # a private character: no vocabulary holds it


class AddedToken(Protocol):
    """A token that a tokenizer finds before it splits the rest."""

    content: str
    special: bool


class Tokenizer(Hashable, Protocol):
    """The part of a Hugging Face tokenizer that rendering needs."""

    chat_template: str | None

    @property
    def all_special_ids(self) -> Sequence[int]:
        """Ids of the tokens with a name: begin, end, unknown and others."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The added tokens by id, special or not."""
        ...

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
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """The template's text."""
        ...


def encode_data(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text that is data: special tokens spelled in it stay text. Raises `ValueError` when
    the vocabulary holds a special token as an ordinary piece, so that it would count."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if not special_tokens(tokenizer).keys().isdisjoint(ids):
        raise ValueError(FORGING)
    return ids


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The text of each special token by id; a tokenizer is taken as finished when first seen."""
    added = {key: one.content for key, one in tokenizer.added_tokens_decoder.items() if one.special}
    named = {key: tokenizer.decode([key]) for key in tokenizer.all_special_ids}
    # What unknown characters become is no mark of a turn, where ordinary text comes to it.
    rare = tokenizer.encode(_RARE, add_special_tokens=False, split_special_tokens=True)
    return {key: text for key, text in (named | added).items() if key not in rare}


@dataclass(frozen=True, slots=True)
class Judge:
    """Encodes stretches of a template's text of `contents`. `alone(i)` is what the template makes
    of content `i`, asked for only where it is no mere strip."""

    tokenizer: Tokenizer
    seed: str
    contents: Sequence[str]
    alone: Callable[[int], str]

    def ids(self, text: str, marked: str) -> list[int]:
        """Ids of a stretch of the template's `text`, which is `marked` when messages say marks.
        Raises `ValueError` when what is said may count as a special token."""
        special = special_tokens(self.tokenizer)
        pieces = re.split(f"{self.seed}([0-9]+)[.]", marked)
        shown = {int(number) for number in pieces[1::2]}
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        wanted = [key for key in self._encode(marked) if key in special]
        found = [key for key in ids if key in special]
        texts = {special[key] for key in found}
        spelled = {i for i in shown if any(text in self.contents[i] for text in texts)}
        if found == wanted and not spelled:
            return ids
        parts = list(self._parts(text, pieces))
        for apart in filter(None, (spelled, shown)):
            ids = self._joined(parts, apart)
            if [key for key in ids if key in special] == wanted:
                return ids
        raise ValueError(FORGING)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _joined(self, parts: Sequence[tuple[int | None, str]], apart: Set[int]) -> list[int]:
        out: list[int] = []
        plain = ""
        for number, part in parts:
            if number in apart:
                out += self._encode(plain) + encode_data(self.tokenizer, part)
                plain = ""
            else:
                plain += part
        return out + self._encode(plain)

    def _parts(self, text: str, pieces: Sequence[str]) -> Iterator[tuple[int | None, str]]:
        """`text` in parts: the template's own (`None`) and what is said (the content's number)."""
        end = len(pieces[0])
        if not text.startswith(pieces[0]):
            raise ValueError(FORGING)
        yield None, pieces[0]
        for number, piece in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            said = next((s for s in self._said(number) if text.startswith(s + piece, end)), None)
            if said is None:
                raise ValueError(FORGING)
            yield number, said
            yield None, piece
            end += len(said) + len(piece)
        if end != len(text):
            raise ValueError(FORGING)

    def _said(self, number: int) -> Iterator[str]:
        content = self.contents[number]
        yield from (content, content.strip(), content.rstrip(), content.lstrip())
        yield content.strip("\n")
        yield self.alone(number)


def seed_of(text: str) -> str:
    """Digits that `text` does not hold: those of its own digest. Letters would not survive a
    template that changes their case."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return f"{int.from_bytes(digest):039d}"


def mark_of(seed: str, number: int) -> str:
    """What stands in the marked text in the place of content `number`."""
    return f"{seed}{number}."
