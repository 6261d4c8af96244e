"""Functions of skills: read from syntax trees, joined by calls, tested by the cases beside."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malicious_skills import skill

from agentloop.errors import UsageError
from agentloop.skills.functions import cases, dependencies, functions, problems, program, read

AREA = '''def area(r: float, unit: str = "m") -> float:
    """Area of a circle."""
    return PI * r * r


PI = 3
'''
RING = '''def ring(outer: float, inner: float) -> float:
    """Area between two circles."""
    return area(outer) - area(inner)
'''
MENU = '''from math import floor


def price(items: list[dict[str, int | None]]) -> int:
    """What it costs."""
    def one(x):
        return floor(ring(x, 1))
    return sum(one(3) for item in items)
'''


def script(code: str, name: str = "helper", **others: str) -> object:
    return skill({"scripts/x.py": code, **others}, name)


def test_signature_and_docstring() -> None:
    [one] = functions(script(AREA))  # type: ignore[arg-type]
    assert (one.name, one.signature) == ("area", "area(r: float, unit: str='m') -> float")
    assert (one.doc, one.path, one.line, one.problems) == (
        "Area of a circle.", "scripts/x.py", 1, (),
    )  # fmt: skip
    assert problems(script(AREA)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "told"), [
    ("def f(x) -> int:\n    'd'\n    return 1", "no JSON type for `x`"),
    ("def f(x: set) -> int:\n    'd'\n    return 1", "no JSON type for `x`"),
    ("def f(x: tuple[int, int]) -> int:\n    'd'\n    return 1", "no JSON type for `x`"),
    ("def f(x: dict[int, str]) -> int:\n    'd'\n    return 1", "no JSON type for `x`"),
    ("def f(x: int):\n    'd'\n    return 1", "what it returns"),
    ("def f(x: int) -> int:\n    return 1", "no docstring"),
    ("def f(*x: int) -> int:\n    'd'\n    return 1", "any number"),
    ("@print\ndef f(x: int) -> int:\n    'd'\n    return 1", "decorators"),
    ("print(1)", "runs when it is loaded"),
    ("X = print(1)", "runs when it is loaded"),
    ("for x in y: pass", "runs when it is loaded"),
    ("def f(", "is not Python"),
    ("x = " + "(" * 5000, "is not Python"),
    ("x" * 200_001, "at most 200000"),
])  # fmt: skip
def test_what_cannot_be_offered_is_said(code: str, told: str) -> None:
    assert any(told in one for one in problems(script(code)))  # type: ignore[arg-type]


def test_skills_that_call_others() -> None:
    library = {
        "a": skill({"scripts/area.py": AREA}, "circle"),
        "b": skill({"scripts/ring.py": RING}, "rings"),
        "c": skill({"scripts/menu.py": MENU}, "menu"),
        "d": skill({}, "words"),
    }
    assert dependencies(library) == {"a": (), "b": ("a",), "c": ("b",), "d": ()}
    source = program("c", library)
    assert source.index("def area") < source.index("def ring") < source.index("def price")
    space: dict[str, object] = {}
    exec(source, space)
    assert space["price"]([{}, {}]) == 2 * (27 - 3)  # type: ignore[operator]


def test_a_name_twice_and_a_circle_are_refused() -> None:
    twice = {n: skill({"scripts/x.py": AREA}, n) for n in ("one", "two")}
    twice["user"] = skill({"scripts/x.py": RING}, "user")
    with pytest.raises(UsageError, match="which `one`, `two` define"):
        dependencies(twice)
    circle = {
        "p": skill({"scripts/x.py": "def p(x: int) -> int:\n    return q(x)"}, "p"),
        "q": skill({"scripts/x.py": "def q(x: int) -> int:\n    return p(x)"}, "q"),
    }
    with pytest.raises(UsageError, match="circle"):
        program("p", circle)
    hidden = {
        "a": skill({"scripts/x.py": AREA}, "circle"),
        "b": skill({"scripts/x.py": RING + "PI = 4\n"}, "rings"),
    }
    with pytest.raises(UsageError, match="both define `PI`"):
        program("b", hidden)


@pytest.mark.parametrize(
    "call", ["# area(1)", "'area(1)'", "x.area(1)", "area", "(lambda area: area(1))"]
)
def test_only_a_call_is_a_call(call: str) -> None:
    library = {
        "a": skill({"scripts/x.py": AREA}, "circle"),
        "b": skill({"scripts/x.py": f"def f(x: int) -> int:\n    0\n    {call}\n"}, "other"),
    }
    assert dependencies(library)["b"] == ()


def test_cases_lie_beside() -> None:
    text = '{"function": "area", "cases": [{"arguments": [2], "expected": 12}], "tolerance": 0.1}'
    one = skill({"scripts/x.py": AREA, "tests/area.json": text})
    [found] = cases(one)
    assert (found.function, found.tolerance) == ("area", 0.1)
    assert found.cases == ({"arguments": [2], "expected": 12},)
    assert problems(one) == []
    other = skill({"tests/area.json": text})
    assert problems(other) == ["there is a test of `area`, which no script defines"]


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"function": "f"}', '{"function": "f", "cases": 3}', "[" * 100_000,
    '{"function": "f", "cases": [{}]}', '{"function": "f", "cases": [{"arguments": []}]}',
    '{"function": "f", "cases": [{"arguments": [], "expected": 1, "raises": "ValueError"}]}',
    '{"function": "f", "cases": [], "tolerance": "x"}', '{"function": "f", "cases": [3]}',
])  # fmt: skip
def test_a_wrong_test_is_named(text: str) -> None:
    one = skill({"tests/f.json": text})
    with pytest.raises(UsageError, match=r"`tests/f\.json` of `helper` is no test"):
        cases(one)
    assert any("is no test" in told for told in problems(one))


WORDS = [
    "def f(", "x", ": int", ") -> int:", "\n    ", "return ", "g(1)", "\n", "'d'", "import ", "*",
    "=", "@", "\x00", "é", "if ", "class A:",
]  # fmt: skip
CODE = st.text(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=40).map("".join)


def judge(code: str, text: str) -> None:
    one = skill({"scripts/x.py": code, "tests/x.json": text})
    assert all(isinstance(told, str) for told in problems(one))
    read("x.py", code)


@pytest.mark.parametrize(
    "examples", [150, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_any_script_is_judged(examples: int) -> None:
    settings(max_examples=examples, deadline=2000)(given(CODE, CODE)(judge))()
