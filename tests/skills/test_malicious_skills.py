"""Skills that mean harm: an import runs nothing, a reviewer is told, and the sandbox holds."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from malicious_skills import FILES, SCRIPTS, every, skill

from agentloop.cli import run
from agentloop.ports import Programs
from agentloop.records import Program, Skill
from agentloop.sandboxes.profile import open_profile, open_sandbox, read_profile
from agentloop.skills.functions import functions, problems
from agentloop.skills.library import curated, export, export_zip, gather
from agentloop.skills.scan import scan
from agentloop.workspace import Workspace, carried

LOOPS = ("never ends", "takes all memory", "prints for ever")
SECRET = "canary-secret-31415"


@dataclass
class Canary:
    """What must stay untouched."""

    path: Path
    server: socket.socket

    def of(self, one: Skill) -> Skill:
        port = str(self.server.getsockname()[1])
        files = {
            path: text.replace("CANARY", str(self.path)).replace("PORT", port)
            for path, text in {"SKILL": one.document, **one.files}.items()
        }
        return replace(one, document=files.pop("SKILL"), files=files)

    def untouched(self) -> bool:
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return not self.path.exists() and not self.path.is_symlink()
        return False


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    monkeypatch.setenv("SECRET", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield Canary(tmp_path / "canary", server)


def test_there_are_enough_and_the_canary_works(canary: Canary) -> None:
    assert len(every()) >= 40 and canary.untouched()
    socket.create_connection(canary.server.getsockname()).close()
    assert not canary.untouched() and canary.untouched()
    exec(canary.of(every()["writes by pathlib"]).files["scripts/helper.py"])
    assert not canary.untouched()


@pytest.mark.parametrize("title", every())
def test_import_runs_nothing_and_the_reviewer_is_told(
    tmp_path: Path, home: Path, canary: Canary, title: str
) -> None:
    one = canary.of(every()[title])
    folder = export(one, tmp_path / "theirs").parent
    packed = export_zip([one], tmp_path / "x.zip")
    assert run(["skills", "import", "--from", str(folder)]) == 0
    assert run(["skills", "show", str(folder)]) == 0 == run(["skills", "list"])
    [read] = gather(packed)
    assert read.files == one.files
    functions(read), problems(read)
    assert title in LOOPS or scan(read), "nothing to look at"
    assert canary.untouched()


@pytest.mark.parametrize("title", SCRIPTS)
def test_the_sandbox_holds(canary: Canary, title: str) -> None:
    one = canary.of(every()[title])

    async def attempt() -> None:
        sandbox = open_sandbox("monty", Workspace((carried(),)))
        try:
            result = await sandbox.run(one.files["scripts/helper.py"])
        finally:
            await sandbox.close()
        assert SECRET not in result.stdout + result.error

    asyncio.run(attempt())
    assert canary.untouched()


@pytest.mark.integration
@pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing")
def test_full_python_in_namespaces_holds(canary: Canary) -> None:
    profile = read_profile(carried() / "sandboxes" / "bwrap" / "profile.yaml")
    sandbox = open_profile(profile.model_copy(update={"seconds": 2}))
    assert isinstance(sandbox, Programs)
    ran = 0

    async def attempt() -> None:
        nonlocal ran
        for title in SCRIPTS:
            code = canary.of(every()[title]).files["scripts/helper.py"]
            result = await sandbox.execute(Program(code=code))
            assert SECRET not in result.stdout + result.error, title
            ran += not result.error
        await sandbox.close()

    asyncio.run(attempt())
    time.sleep(1.2)  # for what would outlive its program
    assert canary.untouched() and ran > 0


@pytest.mark.parametrize("title", FILES)
def test_what_is_found_names_place_and_kind(title: str) -> None:
    kinds = {
        "cron": "persistence", "pipe to a shell": "network", "install hook": "hook",
        "setup.py": "hook", "conftest": "hook", "site": "hook", "path file": "hook",
        "agent hooks": "hook", "dynamic context": "hook", "strange index": "dependency",
        "npx": "dependency", "tag characters": "hidden", "zero width": "hidden",
        "comment": "hidden", "injection": "instruction", "exfiltration": "instruction",
        "shell script": "process", "binary": "binary",
    }  # fmt: skip
    found = scan(skill(FILES[title]))
    assert kinds[title] in {one.kind for one in found}
    assert all(one.detail.isprintable() and len(one.detail) <= 120 for one in found)


def test_scripts_are_told_by_line() -> None:
    code = "import math\n\nimport os\nfrom socket import socket\nx = eval('1')\nimport numpy\n"
    found = {(one.line, one.kind) for one in scan(skill({"scripts/x.py": code}))}
    assert found == {(3, "host"), (4, "network"), (5, "code"), (6, "dependency")}


def test_code_in_a_document_is_read_too() -> None:
    body = "Do:\n\n```python\nimport subprocess\n```\n"
    [one] = scan(skill({"SKILL": body}))
    assert (one.path, one.kind, one.line) == ("SKILL.md", "process", 9)


def test_carried_skills_give_no_advice() -> None:
    assert [scan(one) for one in curated(Workspace((carried(),)))] == [[]]


def test_much_of_it_is_cut() -> None:
    many = skill({f"scripts/{at}.py": "import os\n" * 40 for at in range(9)})
    assert len(scan(many)) == 100
    long = "x" * 500_000
    [one, *_] = scan(skill({"references/x.md": long}))
    assert one.kind == "hidden"
