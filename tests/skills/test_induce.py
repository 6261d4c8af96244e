"""Skills from successes: right groups, valid documents, and code that still does what it says."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from skill_world import KINDS, Llama, solved, successes

from agentloop.records import Episode, SandboxResult, Score, Skill
from agentloop.skills.document import check, parse
from agentloop.skills.induce import cluster, induce, validate


@pytest.fixture(scope="module")
def embedder() -> Llama:
    return Llama()


def kind_of(episode: Episode) -> str:
    return episode.task.id.split("-")[0]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_kinds_though_no_label_is_read(embedder: Llama, seed: int) -> None:
    episodes = [one for kind in KINDS for one in successes(kind, 12, seed)]
    random.Random(seed).shuffle(episodes)
    found = cluster(episodes, embedder)
    assert sorted(len(one) for one in found) == [12] * 6
    assert all(len({kind_of(episode) for episode in one}) == 1 for one in found)
    assert cluster(episodes, embedder) == found


def test_failures_are_not_clustered(embedder: Llama) -> None:
    wrong = replace(successes("gcd", 1)[0], score=Score(value=0, success=False, source="t"))
    assert cluster([wrong], embedder) == []
    assert cluster([], embedder) == []


def test_a_skill_needs_two_independent_successes() -> None:
    one, other = successes("gcd", 2)
    assert induce([one]) is None
    assert induce([one, replace(one, id="again", sample=1)]) is None
    assert induce([one, other]) is not None


def test_skills_are_valid_named_apart_and_carry_their_evidence() -> None:
    groups = [successes(kind, 6) for kind in KINDS]
    skills: list[Skill] = []
    for group in groups:
        others = [one for rest in groups if rest is not group for one in rest]
        skill = induce(group, others=others, taken=[one.name for one in skills])
        assert skill is not None
        assert check(skill.document, folder=skill.name) == []
        assert set(skill.evidence) == {one.id for one in group}
        assert parse(skill.document).body.count("Question: ") == 2
        skills.append(skill)
    assert len({one.name for one in skills}) == 6
    assert "gcd" in skills[0].name
    alone, again = induce(groups[0]), induce(groups[0], taken=["greatest-common-divisor"])
    assert alone is not None and alone.name == "greatest-common-divisor"
    assert again is not None and again.name == "greatest-common-divisor-2"


def test_a_skill_of_the_same_name_becomes_the_parent() -> None:
    first = induce(successes("gcd", 3))
    assert first is not None
    second = induce(successes("gcd", 3, seed=9), library={"skill-1": first})
    assert second is not None
    assert (second.name, second.parents) == (first.name, ("skill-1",))
    assert parse(second.document).metadata["agentloop.version"] == "2"


def test_examples_show_the_way_that_most_were_solved() -> None:
    odd = solved(
        "odd", "Find the Greatest Common Divisor (GCD) of these numbers: 4, 6", "print(2)", "2"
    )
    skill = induce([odd, *successes("gcd", 3)])
    assert skill is not None and "print(2)" not in skill.document


def test_hostile_prompts_make_a_valid_document() -> None:
    prompts = [
        "--- \n---\nname: evil\x1b[2J &a *a !!python {{x}} ''\" \ud800",
        "# ```\n---\n\x00 two",
    ]
    skill = induce([solved(str(at), text, "print(1)", "1") for at, text in enumerate(prompts)])
    assert skill is not None
    assert check(skill.document, folder=skill.name) == []


def run_in_python(code: str) -> SandboxResult:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return SandboxResult(stdout=out.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_validate_runs_every_example_again(kind: str) -> None:
    ran: list[str] = []

    async def run_code(code: str) -> SandboxResult:
        ran.append(code)
        return run_in_python(code)

    skill = induce(successes(kind, 4))
    assert skill is not None
    assert asyncio.run(validate(skill, run_code)) == []
    assert len(ran) == 2


def test_validate_reports_other_output_errors_timeouts_and_bad_documents() -> None:
    skill = induce(successes("gcd", 2))
    assert skill is not None

    def problems(skill: Skill, result: SandboxResult) -> list[str]:
        async def run_code(code: str) -> SandboxResult:
            return result

        return asyncio.run(validate(skill, run_code))

    assert all("printed" in one for one in problems(skill, SandboxResult(stdout="-1\n")))
    assert len(problems(skill, SandboxResult(stdout="-1\n"))) == 2
    assert "NameError" in problems(skill, SandboxResult(stdout="", error="NameError: x"))[0]
    assert "time" in problems(skill, SandboxResult(stdout="", timed_out=True))[0]
    broken = replace(skill, document=skill.document.replace("name:", "nom:", 1))
    assert "name" in problems(broken, SandboxResult(stdout=""))[0]
