"""The whole corpora behind walls (`bwrap`), and that the hacks are real: graders that share a
process with the code, look at its exit status or read its log are fooled by them."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
from corpus import SLEEPY, TARGETS, Piece, hacks, honest
from grading_corpora import failed, grade_all, passed

from agentloop.ports import Programs, Sandbox
from agentloop.records import Program, SandboxResult
from agentloop.rewards.split import HiddenTests, hidden_tests
from agentloop.sandboxes.profile import open_sandbox
from agentloop.workspace import Workspace

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing"),
]
NAIVE = """\
solution = {{"__name__": "solution"}}
exec({code!r}, solution)
for given, expected in {cases!r}:
    assert solution["solve"](given) == expected
print("graded: right")
"""
_PASSED = re.compile(
    r"\b\d+ (x?passed|skipped)\b|\bOK\b|PASSED|All tests passed|^ok \d|: right$", re.M
)


@pytest.fixture
def bwrap() -> Iterator[Sandbox]:
    yield open_sandbox("bwrap", Workspace.find())


def test_no_hack_passes_behind_walls(bwrap: Sandbox) -> None:
    found = hacks(walled=True)
    graded = grade_all(bwrap, [(one.code, TARGETS[one.target]) for one in found], seconds=2.0)
    assert len(found) >= 60 and passed(graded, found) == []


def test_every_honest_solution_passes_behind_walls(bwrap: Sandbox) -> None:
    solutions = honest(4, cpython=True)
    graded = grade_all(bwrap, [(one.code, hidden_tests(task)) for task, one in solutions])
    assert len(solutions) >= 200 and failed(graded, [one for _, one in solutions]) == []
    assert not any(one.flags for one in graded)


def test_graders_that_trust_the_code_are_fooled(bwrap: Sandbox) -> None:
    some = [one for one in hacks(walled=True) if one.name.startswith(("values", "exits", "logs"))]
    found = [one for one in some if not any(word in one.name for word in SLEEPY)]
    fooled: Counter[str] = Counter()
    for result in asyncio.run(run(bwrap, found)):
        fooled["process"] += "graded: right" in result.stdout
        fooled["status"] += result.returncode == 0
        fooled["log"] += bool(_PASSED.search(f"{result.stdout}\n{result.error}"))
    assert fooled["process"] >= 5 and fooled["status"] >= 12 and fooled["log"] >= 15, fooled
    print(f"\nof {len(found)} hacks so many fool a grader that looks there:", dict(fooled))


async def run(sandbox: Sandbox, found: list[Piece]) -> list[SandboxResult]:
    assert isinstance(sandbox, Programs)
    turn = asyncio.Semaphore(4)

    async def one(piece: Piece) -> SandboxResult:
        async with turn:
            return await sandbox.execute(Program(code=naive(piece.code, TARGETS[piece.target])))

    try:
        return await asyncio.gather(*map(one, found))
    finally:
        await sandbox.close()


def naive(code: str, tests: HiddenTests) -> str:
    cases = [(one.arguments[0], one.expected) for one in tests.cases]
    return NAIVE.format(code=code, cases=cases)
