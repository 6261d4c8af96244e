"""SKILL.md: what is written is read back; what is wrong is said, all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.skills.document import Document, check, parse, write

NAMES = st.from_regex(r"[a-z0-9]{1,9}(-[a-z0-9]{1,9}){0,4}", fullmatch=True)
TEXTS = st.text(
    st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n"), min_size=1, max_size=200
).filter(lambda text: bool(text.strip()))


@given(
    document=st.builds(
        Document,
        name=NAMES,
        description=TEXTS.map(str.strip),
        body=st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n")).map(str.strip),
        license=TEXTS | st.just(""),
        compatibility=TEXTS | st.just(""),
        allowed_tools=TEXTS | st.just(""),
        metadata=st.dictionaries(TEXTS, TEXTS, max_size=3),
    )
)
def test_round_trip(document: Document) -> None:
    text = write(document)
    assert check(text, folder=document.name) == []
    assert parse(text, folder=document.name) == document


@given(st.text(max_size=300) | st.text(max_size=200).map(lambda text: f"---\n{text}\n---\nbody"))
def test_any_text_is_judged_without_an_exception(text: str) -> None:
    problems = check(text, folder="x")
    if not problems:
        assert parse(text, folder="x").name == "x"


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", "a--b", "a_b", "../up", "a/b", "a" * 65, ".", "é", "a\n", "con.", "a b"],
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        write(Document(name=name, description="d"))


def front(fields: str) -> str:
    return f"---\nname: a\ndescription: d\n{fields}\n---\nbody\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (front("extra: 1"), "extra"),
        (front("metadata:\n  a: 1"), "metadata"),
        (front("metadata: {a: b}"), "flow"),
        (front("x:\n" + "- " * 4000), "deep"),
        (front("metadata: [a]"), "metadata"),
        (front("compatibility: " + "x" * 501), "compatibility"),
        (front("license: 3"), "license"),
        (front("metadata: &a\n  x: *a"), "aliases"),
        (front("metadata: !!python/object/apply:os.system [ls]"), "tags"),
        (front("license: !!int"), "tags"),
        (front("when: 2026-99-99"), "not YAML"),
        (front("x: " + "[" * 5000), "deep"),
        (front("x: " + "y" * 20000), "longer"),
        ("---\nname: a\n---\n", "description"),
        ("---\nname: a\ndescription: '" + "d" * 1025 + "'\n---\n", "description"),
        ("---\n- a\n---\n", "mapping"),
        ("name: a\n", "front matter"),
        ("---\nname: a\n", "front matter"),
        ("x" * 200_001, "200000"),
        ("---\nname: a\ndescription: d\n---\n\x1b[2J", "control"),
    ],
)
def test_problems_are_named(text: str, word: str) -> None:
    assert any(word in problem for problem in check(text))
    with pytest.raises(UsageError):
        parse(text)


def test_all_problems_at_once_and_the_folder_must_match() -> None:
    problems = check("---\nname: A_\nextra: 1\n---\n")
    assert len(problems) == 3
    assert check(front(""), folder="a") == []
    assert "folder" in check(front(""), folder="b")[0]
