"""Reading commands, as a person sees them: fit for 80 columns, short ids that work."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agentloop.cli import run

Shown = Callable[..., str]
NOUNS = ("trajectories", "skills", "instructions", "policies", "bundles")


@pytest.fixture(params=[80, 120])
def shown(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shown:  # fmt: skip
    """Run a command at a width; its output, no line of it wider."""
    monkeypatch.setenv("COLUMNS", str(request.param))

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert run(list(arguments)) == 0
        out = capsys.readouterr().out
        assert all(len(line) <= request.param for line in out.splitlines())
        return out

    return call


@pytest.mark.parametrize("noun", NOUNS)
def test_a_listed_id_is_shown_whole_and_accepted(
    cycled: tuple[str, str], shown: Shown, noun: str
) -> None:
    listed = shown("inspect", noun, "--home", cycled[1])
    ids = re.findall(r"^([0-9a-f]{8}) ", listed, re.M)
    assert ids
    assert shown("inspect", noun, ids[0], "--home", cycled[1])


def test_decisions_are_one_line_each_and_reasons_come_with_the_id(
    cycled: tuple[str, str], shown: Shown
) -> None:
    listed = shown("inspect", "decisions", "--home", cycled[1])
    cycle = listed.split()[0]
    assert cycle.startswith("cycle-")
    named = re.compile(r"joint|final|no |policy|skills")
    lines = [line for line in listed.splitlines() if named.match(line)]
    assert len(lines) >= 4 and all("✓" in line or "✗" in line for line in lines)
    assert "better: " not in listed
    whole = shown("inspect", "decisions", cycle[:10], "--home", cycled[1])
    assert whole.startswith(listed)
    assert re.search(r"final +better: \d+ won, 0 lost of \d+, p = ", whole)


def test_the_champion_is_marked_and_lineage_shown(cycled: tuple[str, str], shown: Shown) -> None:
    assert shown("inspect", "bundles", "--home", cycled[1]).count("tiny/champion") == 1
    listed = shown("inspect", "instructions", "--home", cycled[1])
    [evolved] = re.findall(r"^(\w{8}) .* reflect ", listed, re.M)
    whole = shown("inspect", "instructions", evolved, "--home", cycled[1])
    assert "Use the python tool." in whole and len(re.findall(r"instruction-\w{16}", whole)) >= 2


def test_solved_and_failed_and_the_limit(cycled: tuple[str, str], shown: Shown) -> None:
    failed = shown("inspect", "trajectories", "--failed", "--limit", "3", "--home", cycled[1])
    assert failed.count(" failed ") == 3 and " solved " not in failed


def test_reports_fit(cycled: tuple[str, str], tmp_path: Path, shown: Shown) -> None:
    workflow, home = cycled
    report = shown("cycle", workflow, "--home", home, "--dry-run")
    assert "rollouts at most" in report and "free (local model)" in report
    assert "python" in shown("doctor", "--home", str(tmp_path))
    assert "nearest to" in shown("search", "product", "-k", "2", "--home", home)


def test_a_cycle_ends_with_what_to_do_next(
    cycled: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cycle", cycled[0], "--home", cycled[1]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"promoted held out \d\d % → 100 %", out) and "each lane alone" in out
    assert "next: agentloop inspect bundles bundle-" in out and "agentloop rollback tiny" in out
