"""What a user's own files import from `agentloop`, and nothing more."""

import subprocess
import sys

import pytest

import agentloop


def test_the_names() -> None:
    assert set(agentloop.__all__) == {
        "AgentLoopError", "Episode", "Score", "Task", "UsageError", "chat_model", "part", "tool",
    }  # fmt: skip
    for name in agentloop.__all__:
        assert getattr(agentloop, name).__doc__
    assert agentloop.__version__.count(".") == 2


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        agentloop.nonsense  # noqa: B018


def test_the_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert version("agentloop") == agentloop.__version__


def test_a_part_and_a_tool_of_one_s_own() -> None:
    @agentloop.part
    class Own:
        n: int = 3

    assert Own(n=4).n == 4  # type: ignore[call-arg]

    def double(x: int) -> int:
        """Twice `x`."""
        return 2 * x

    assert agentloop.tool(double).spec.name == "double"


def test_importing_prints_nothing_and_leaves_the_environment() -> None:
    code = "import os; before = dict(os.environ); import agentloop; assert before == os.environ"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
