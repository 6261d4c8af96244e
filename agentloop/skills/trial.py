"""Try a skill in a sandbox: its worked examples again, and the cases beside its functions.

Goes in: a skill, the library whose functions it may call, and two ways to run code that a caller
binds to a sandbox. Comes out: how many there were and what went wrong. What is expected of a case
never enters the sandbox.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from agentloop.errors import UsageError
from agentloop.records import Json, SandboxResult, Skill, SkillTests
from agentloop.skills.document import parse
from agentloop.skills.functions import Cases, cases, functions, problems, program
from agentloop.skills.induce import validate
from agentloop.trajectories.examples import code_blocks

Grade = Callable[[str, dict[str, Json]], Awaitable[str]]
"""(code, `{"function", "cases", "tolerance"}`) -> why it is wrong, empty when it passes."""


async def trial(
    name: str, library: Mapping[str, Skill], *, sandbox: str,
    run_code: Callable[[str], Awaitable[SandboxResult]], grade: Grade,
) -> SkillTests:  # fmt: skip
    """Test the skill `name` of a library. Raises the `SandboxError` of what runs the code."""
    skill = library[name]
    wrong = await validate(skill, run_code)
    count, failed = len(code_blocks(parse(skill.document).body)), len(wrong)
    structure = problems(skill)
    try:
        source = program(name, library)
        tests = cases(skill)
    except UsageError as error:
        return SkillTests(
            run=count, failed=failed, sandbox=sandbox,
            problems=(*wrong, *dict.fromkeys([*structure, str(error)])),
        )  # fmt: skip
    for one in tests:
        count += len(one.cases)
        if why := await grade(source, _hidden(one)):
            failed += 1
            wrong.append(f"`{one.function}`: {why}")
    tested = {one.function for one in tests}
    structure += [f"`{one.name}` has no test" for one in functions(skill) if one.name not in tested]
    return SkillTests(
        run=count, failed=failed, sandbox=sandbox, problems=(*wrong, *dict.fromkeys(structure))
    )


def _hidden(one: Cases) -> dict[str, Json]:
    return {"function": one.function, "cases": list(one.cases), "tolerance": one.tolerance}
