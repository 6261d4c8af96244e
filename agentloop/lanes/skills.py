"""The skills lane: one skill per kind of task that was solved, validated before it is proposed.

Goes in: successes of this cycle's collection. Comes out: a bundle with the skills whose worked
examples give the same output again in the sandbox. Kinds are found by meaning; family labels are
not read.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from agentloop.lanes.bench import Bench
from agentloop.ports import Sandbox, part
from agentloop.records import Proposal, SandboxResult, Skill
from agentloop.skills.induce import cluster, induce, validate
from agentloop.store.query import Query
from agentloop.tools.code import PRELUDE
from agentloop.trajectories.examples import uses_tools


@part
class InduceSkills:
    """One skill per cluster of at least two successes."""

    examples: int = 2
    """Worked examples in a skill."""
    most: int = 32
    """Skills proposed in one cycle."""

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with new skills, or the reason why there are none."""
        found = bench.archive.episodes(Query(run=bench.run, purpose="collect", success=True))
        episodes = [one for one in found if uses_tools(one)] or found
        kept: list[str] = []
        rejected: list[str] = []
        names: set[str] = set()
        champion = bench.bundle(bench.champion)
        library = {one: bench.archive.get(one, Skill) for one in champion.skills}
        groups = cluster(episodes, bench.embedder)
        for group in groups[: self.most]:
            others = [one for other in groups if other is not group for one in other]
            skill = induce(
                group, others=others, taken=names, library=library, examples=self.examples
            )
            if skill is None:
                continue
            problems = await validate(skill, partial(run_tool, bench.sandbox))
            if problems:
                rejected.append(f"{skill.name}: {problems[0]}")
                continue
            names.add(skill.name)
            kept.append(bench.archive.put(skill))
        bench.archive.add_event(
            "skills",
            bench.run,
            bench.workflow,
            {"proposed": list(kept), "rejected": list(rejected)},
        )
        if not kept:
            why = rejected[0] if rejected else f"{len(episodes)} successes, no two of one kind"
            return Proposal(lane="skills", state="skipped", reason=why)
        bundle = replace(champion, skills=tuple(self.merge(bench, champion.skills, kept)))
        return Proposal(
            lane="skills",
            state="proposed",
            bundle=bundle,
            candidate=kept[0],
            reason=f"{len(kept)} skills, {len(rejected)} rejected",
        )

    def merge(self, bench: Bench, old: tuple[str, ...], new: list[str]) -> list[str]:
        """A new skill replaces an old one of the same name."""
        names = {bench.archive.get(one, Skill).name for one in new}
        return [*(one for one in old if bench.archive.get(one, Skill).name not in names), *new]


async def run_tool(sandbox: Sandbox, code: str) -> SandboxResult:
    """Run code as the `python` tool runs it."""
    return await sandbox.run(PRELUDE + code)
