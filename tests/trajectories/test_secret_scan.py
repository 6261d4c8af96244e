"""The cheap test and what it saves: the same secrets are found as by looking at every string."""

import json
import random
import re
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secret_kinds import PLACES, benign, secrets

from agentloop.trajectories import secret_shapes
from agentloop.trajectories.redact import Redactor
from agentloop.trajectories.secret_scan import RUN, suspicious
from agentloop.trajectories.secret_shapes import marks

MARKS = frozenset("".join(one).encode() for mark in marks() for one in product(*mark))
ADDRESS = re.compile(rb"://[^\s/@\"'\\<>]*@")
CODED = re.compile(rb"[A-Za-z0-9+/]{%d}" % (RUN - 2))


def is_mark(data: bytes, at: int) -> bool:
    before = data[max(0, at - 6) : at]
    inside = before[-1:].isalnum() and b"\\" not in before
    return data[at : at + 4] in MARKS and not (inside and data[at : at + 2] in (b"sk", b"SK"))


def told(data: bytes) -> tuple[bool, bool]:
    """What the test tells, byte by byte; any that is not ASCII is the same to it."""
    ascii_ = bytes(min(byte, 0x7F) for byte in data)
    marked = any(is_mark(ascii_, at) for at in range(len(data))) or bool(ADDRESS.search(data))
    return marked, CODED.search(data) is not None


some_marks = random.Random(0).sample(sorted(MARKS), 300)
bits = st.one_of(
    st.sampled_from(some_marks).flatmap(
        lambda mark: st.sampled_from([mark, mark[:3], mark[1:], mark.swapcase()])
    ),
    st.sampled_from(
        [b"sk-", b"SK0a", b"sk_1", b"a", b"7", b"\\", b"\\u00e9", b"\\n", b" ", b'"', b"://", b"@",
         b"u:p", b"/", b"%41", "é".encode(), b"\xff", b"\0", b"\n", b"\t", b"<"]
    ),
    st.binary(max_size=6),
    st.integers(RUN - 4, RUN + 1).map(lambda size: (b"aB3+/xyz" * 4)[:size]),
)  # fmt: skip


@settings(deadline=None, max_examples=600)  # the first call builds the automata
@given(st.lists(bits, max_size=12).map(b"".join))
def test_it_tells_what_a_search_byte_by_byte_tells(data: bytes) -> None:
    assert suspicious(data) == told(data)


def test_every_mark_is_seen_and_one_letter_less_is_not() -> None:
    for mark in MARKS:
        assert suspicious(b"(" + mark + b")")[0], mark
        assert not suspicious(b"." + mark[:2] + b".")[0]


class Thorough(Redactor):
    """Looks at every string, whatever the cheap test says."""

    def suspects(self, data: bytes) -> bool:
        return True


SECRETS = secrets(150, seed=4)
KNOWN = {f"K{number}": secret for number, (_, secret, _) in enumerate(SECRETS[::3])}
PLAIN = list(benign(300, seed=4))
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(PLAIN),
    st.sampled_from([text for _, _, text in SECRETS]),
    st.lists(bits, max_size=5).map(lambda parts: b"".join(parts).decode("utf-8", "replace")),
)
names = st.sampled_from(["content", "password", "apiKey", "cookie", "id", "token"])
values = st.recursive(
    texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(values)
def test_a_record_is_redacted_as_without_the_cheap_test(value: object) -> None:
    for known in ({}, KNOWN):
        quick, slow = Redactor(known), Thorough(known)
        clean = slow(value)  # type: ignore[arg-type]
        assert quick(value) == clean  # type: ignore[arg-type]
        # As the write path does: nothing is looked at that its JSON does not make suspect.
        written = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if not quick.suspects_each([b"{}", written])[1]:
            assert clean == value


def test_harmless_and_secret_texts_are_redacted_as_without_the_cheap_test() -> None:
    for known in ({}, KNOWN):
        quick, slow = Redactor(known), Thorough(known)
        for text in (*PLAIN, *(text for _, _, text in SECRETS)):
            assert quick.text(text) == slow.text(text)
        for place in PLACES.values():
            for _, _, text in SECRETS[:40]:
                assert quick(place(text)) == slow(place(text))  # type: ignore[arg-type]


def test_the_look_before_the_expressions_loses_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [*PLAIN, *(text for _, _, text in secrets(600, seed=5))]
    every += [text.upper() for text in every]
    quick = [list(secret_shapes.spans(text)) for text in every]
    monkeypatch.setattr(secret_shapes, "_BEGINNINGS", ("",))
    monkeypatch.setattr(secret_shapes, "_TELLING", ("",))
    assert quick == [list(secret_shapes.spans(text)) for text in every]
    assert sum(map(bool, quick)) > 500


@pytest.mark.parametrize("name", secret_shapes._KEYS)
def test_every_key_has_one_of_the_beginnings(name: str) -> None:
    @settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(re.compile(secret_shapes._KEYS[name], re.ASCII)))
    def holds(text: str) -> None:
        assert any(mark in text for mark in secret_shapes._BEGINNINGS), text

    holds()
