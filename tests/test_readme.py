"""Every command that the README and the docs show exists, with the options they show."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from agentloop.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("workflows/*/README.md")),
]
SHOWN = sorted(
    {
        line.removeprefix("$ ").split("  #")[0].strip()
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("$ agentloop ")
    }
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("shown", SHOWN)
def test_the_command_parses(shown: str) -> None:
    words = shlex.split(shown)[1:]
    command = typer.main.get_command(app)
    context = command.make_context("agentloop", list(words), resilient_parsing=False)
    name, sub, rest = command.resolve_command(context, words)  # type: ignore[attr-defined]
    assert sub is not None, f"no command `{name}`"
    sub.make_context(name, rest, parent=context, resilient_parsing=False)


def test_there_are_commands_to_check() -> None:
    assert len(SHOWN) >= 8


def test_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\$ make ([a-z-]+)", text, re.M))
    assert {"demo", "test"} <= shown <= TARGETS
