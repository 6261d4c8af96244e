"""`--tasks`: which part a text means."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentloop.errors import UsageError
from agentloop.tasks.files import Jsonl
from agentloop.tasks.reasoning_gym import ReasoningGym
from agentloop.tasks.spec import from_spec


def test_a_generator_and_a_file() -> None:
    assert from_spec("reasoning_gym:gcd, lcm", Path("/x")) == ReasoningGym(families=["gcd", "lcm"])
    assert from_spec("a/t.jsonl", Path("/x")) == Jsonl(path="/x/a/t.jsonl")
    assert from_spec("/y/t.jsonl", Path("/x")) == Jsonl(path="/y/t.jsonl")


@pytest.mark.parametrize("spec", ["", "gcd", "reasoning_gym:", "reasoning_gym:gcd,,lcm", "t.csv"])
def test_anything_else_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="reasoning_gym:"):
        from_spec(spec, Path("/x"))
