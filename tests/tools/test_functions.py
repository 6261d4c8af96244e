"""Functions are read off the syntax tree: what is defined, what is called, where values go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.tools.functions import called, functions, reaching, source

CODE = '''
import re
from math import floor

def double(x):
    """Twice."""
    return 2 * x

def double(x, y=1):
    return 2 * x * y

class Hidden:
    def method(self):
        pass

@cache
def decorated():
    pass

if True:
    def nested():
        pass
double(3)
'''


def test_top_level_functions_with_their_imports_the_last_of_a_name() -> None:
    [found] = functions(CODE)
    assert (found.name, found.signature) == ("double", "double(x, y=1)")
    assert found.imports == ("import re", "from math import floor")
    assert "2 * x * y" in found.code and "Twice" not in found.code
    assert source([found, found]).count("import re") == 1
    assert functions("def broken(:") == []


def test_a_name_in_text_is_not_a_call() -> None:
    code = "# tidy(1)\nnote = 'tidy(2)'\nother(note)\nthing.tidy()\nf'{tidy}'"
    assert called(code) == ["other"]
    assert called("a(b(1))\nc()\na()") == ["a", "b", "c"]


REACHING = {
    "send(f())": True,
    "x = f()\nsend(to=x)": True,
    "x = f()\ny = x['a'] + 1\nsend(text=str(y))": True,
    "for each in f():\n    send(each)": True,
    "lines = []\nfor g in f():\n    lines.append(g + '!')\nsend(lines)": True,
    "send([one for one in f()])": True,
    "a, b = f()\nsend(b)": True,
    "total = 0\ntotal += f()\nsend(total)": True,
    "def h():\n    return 1\nif (x := f()):\n    send(x)": True,
    "f()\nsend(1)": False,
    "x = f()\nsend('x')": False,
    "x = f()\nx = 2\nprint(x)": False,
    "if f():\n    send(1)": False,
    "# send(f())\nsend(2)": False,
    "x = other()\nsend(x)": False,
    "print(f())": False,
}


@pytest.mark.parametrize(("code", "does"), REACHING.items())
def test_a_value_reaches_a_call_only_as_its_argument(code: str, does: bool) -> None:
    assert reaching(code, {"f"}, {"send"}) == ({"f"} if does else set())


@given(st.text(max_size=80))
def test_any_text_is_read(text: str) -> None:
    assert isinstance(functions(text), list) and isinstance(called(text), list)
    assert reaching(text, {"f"}, {"g"}) <= {"f"}
