"""Grade many pieces of code in one sandbox, and name those that did not end as they should."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from corpus import Piece

from agentloop.ports import Sandbox
from agentloop.rewards.split import HiddenTests, Outcome, grade
from agentloop.sandboxes.process import ProcessSandbox
from agentloop.sandboxes.profile import Profile


def process() -> ProcessSandbox:
    """Full Python without walls, for code that does no harm."""
    logging.getLogger("agentloop").setLevel(logging.ERROR)  # it warns that it has none
    profile = Profile(backend="process", unsafe=True, seconds=20.0, memory_mb=256)
    return ProcessSandbox(profile)


def grade_all(
    sandbox: Sandbox, items: Sequence[tuple[str, HiddenTests]], *, seconds: float = 20.0
) -> list[Outcome]:
    """Outcomes in order, four at a time; the sandbox is closed."""

    async def main() -> list[Outcome]:
        turn = asyncio.Semaphore(4)

        async def one(code: str, tests: HiddenTests) -> Outcome:
            async with turn:
                return await grade(sandbox, code, tests, seconds=seconds)

        try:
            return await asyncio.gather(*(one(*item) for item in items))
        finally:
            await sandbox.close()

    return asyncio.run(main())


def passed(outcomes: Sequence[Outcome], pieces: Sequence[Piece]) -> list[str]:
    """Names of those that passed."""
    return [one.name for one, end in zip(pieces, outcomes, strict=True) if end.passed]


def failed(outcomes: Sequence[Outcome], pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Names of those that did not, and why."""
    pairs = zip(pieces, outcomes, strict=True)
    return [(one.name, end.why) for one, end in pairs if not end.passed]
