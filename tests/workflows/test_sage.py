"""Skills over chains: the reward's truth table, what counts as use, libraries of one's own, credit
by position, and the toy experiment that must fail when a part is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from workflow_folder import folder

from agentloop.lanes.chain import CHAIN, LIBRARY, with_library, written
from agentloop.lanes.function_store import FunctionStore, sound
from agentloop.records import Episode, Score, Task
from agentloop.refs import load_file
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import Profile
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.tools.functions import Function, functions
from agentloop.tools.world_code import WorldCode
from agentloop.worlds.apps.calls import CALLS
from agentloop.worlds.apps.tasks import AppsTasks, chains, reached, solution
from agentloop.worlds.apps.world import Apps

pytest.importorskip("torch")

from agentloop.training.toy_rows import Turn, episode

FOLDER = folder("sage")

PAIRS = list(chains(AppsTasks(siblings=2).draw(48, split="train", seed=3)))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MontySandbox]:
    found = MontySandbox(Profile(backend="monty"))
    yield found
    asyncio.run(found.close())


def pair_of(family: str) -> list[Task]:
    return next(pair for pair in PAIRS if pair[0].family == family)


def ran(sandbox: MontySandbox, task: Task, *programs: str, known: str = "") -> Episode:
    """A scored rollout of these programs."""
    world = Apps()
    world.reset(task, 0)
    tool = WorldCode(world, sandbox, functions(known))
    for code in programs:
        asyncio.run(tool.call({"code": code}))
    made = Episode(
        id="e", task=task, bundle="b", purpose="collect", run="r", seed=0,
        state={**world.snapshot(), **tool.state()},
    )  # fmt: skip
    return replace(made, score=reached(made))


# --- the reward -----------------------------------------------------------------------------------

TABLE = {
    (1, 1, True): (2, 2), (1, 0, True): (1, 0), (0, 1, True): (0, 2), (1, 1, False): (1, 1),
    (0, 0, True): (0, 0), (0, 0, False): (0, 0), (1, 0, False): (1, 0), (0, 1, False): (0, 1),
}  # fmt: skip


@pytest.mark.parametrize(("given", "wanted"), TABLE.items())
def test_the_truth_table(
    parts: ModuleType, given: tuple[float, float, bool], wanted: tuple[float, float]
) -> None:
    first, second, used = given
    assert parts.skill_integrated(first, second, used) == wanted
    assert parts.paid("outcome", first, second, used) == (first, second)
    assert parts.paid("chain", first, second, used) == (first + second, second)


USES = {
    "a call that does the work": ("", True),
    "a comment": ("# file_note(1, 2)\nx = 'file_note(1, 2)'\n", False),
    "its own function of that name": ("OWN", False),
}


@pytest.mark.parametrize("case", USES)
def test_a_call_counts_and_a_name_does_not(
    parts: ModuleType, sandbox: MontySandbox, case: str
) -> None:
    one, two = pair_of("file_note")
    first = ran(sandbox, one, solution(one))
    known = solution(one).rpartition("\n\n")[0]
    code, counts = USES[case]
    if counts:
        second = ran(sandbox, two, solution(two, known=True), known=known)
    elif code == "OWN":
        second = ran(sandbox, two, solution(two), known=known)
    else:
        body = solution(two).replace("file_note", "mine")
        second = ran(sandbox, two, code + body, known=known)
    assert second.success
    assert parts.used_skills(first, second) == ({"file_note"} if counts else set())


HELPER = """\
def helper(title):
    return notes_find(title=title)[0]

def idle(title):
    return title
note = helper({title!r})
files_write(path={path!r}, text=note["text"])
notes_delete(note=note["id"])
finish()"""
SHOW = "idle('x')\n"
RAISES = "try:\n    helper('nothing')\nexcept Exception:\n    pass\n"
UNDONE = "def helper(title):\n    files_write(path='/x', text='1')\n    files_delete(path='/x')\n"


def test_only_what_comes_to_something_counts(parts: ModuleType, sandbox: MontySandbox) -> None:
    one, two = pair_of("file_note")
    given: Any = [task.data["arguments"] for task in (one, two)]
    code = HELPER.format(**given[0])
    first, known = ran(sandbox, one, code), code.rpartition("\nnote =")[0]
    calls = HELPER.format(**given[1]).partition("    return title\n")[2]
    assert first.success
    by_value = ran(sandbox, two, calls, known=known)
    assert by_value.success and parts.used_skills(first, by_value) == {"helper"}
    for_show = ran(sandbox, two, SHOW + solution(two), known=known)
    assert for_show.success and parts.used_skills(first, for_show) == set()
    failed = ran(sandbox, two, RAISES + solution(two), known=known)
    assert failed.success and parts.used_skills(first, failed) == set()
    undone = ran(sandbox, two, "helper('x')\n" + solution(two), known=UNDONE)
    assert undone.success and parts.used_skills(first, undone) == set()
    elsewhere = ran(sandbox, one, solution(one))  # another rollout made other functions
    assert parts.used_skills(elsewhere, by_value) == set()


# --- credit ---------------------------------------------------------------------------------------


def chain_of(
    member: int, first: float, second: float, used: bool, code: bool = True
) -> list[Episode]:
    """Two episodes of one chain, as credit sees them."""
    found = []
    for position, value in ((1, first), (2, second)):
        made = episode(f"{member}-{position}", "t", [Turn((0,), (1,), (-1.0,))], value, "r")
        turns: list[Any] = [{"code": "def f():\n    pass", "error": "", "used": []}] if code else []
        if position == 2 and used:
            turns[0]["used"] = [
                {"name": "f", "inside": [["notes_tag", ["notes/n1"]]], "reached": []}
            ]
        start, end = ({"notes": {"n1": {"tag": tag}}} for tag in "ab")
        data: dict[str, Any] = {
            "scenario": "s", "start": start, CHAIN: {"position": position, "member": member},
            LIBRARY: [member],
        }  # fmt: skip
        task = replace(made.task, prompt=f"library of {member}", data=data)
        found.append(replace(made, task=task, state={"turns": turns, "tables": end}))
    return found


def test_each_position_is_compared_with_the_same_position(parts: ModuleType) -> None:
    members = [chain_of(0, 1, 1, True), chain_of(1, 1, 1, False), chain_of(2, 0, 0, False)]
    flat = [one for member in members for one in member]
    for rule, firsts, seconds in (
        ("skill", (2, 1, 0), (2, 1, 0)), ("outcome", (1, 1, 0), (1, 1, 0)),
        ("chain", (2, 2, 0), (1, 1, 0)),
    ):  # fmt: skip
        credits = parts.ChainCredit(reward=rule).assign(flat[::-1])
        for position, earned in ((1, firsts), (2, seconds)):
            mean = sum(earned) / 3
            gains = [credits[f"{who}-{position}", 0, 1] for who in range(3)]
            assert gains == pytest.approx([one - mean for one in earned])


def test_no_program_costs_and_half_a_chain_teaches_nothing(parts: ModuleType) -> None:
    silent, good = chain_of(0, 0, 0, False, code=False), chain_of(1, 1, 0, False)
    credits = parts.ChainCredit().assign([*silent, *good])
    assert credits["0-1", 0, 1] == pytest.approx(-1.0) and credits["1-1", 0, 1] == pytest.approx(1)
    assert set(parts.ChainCredit().assign([silent[0], good[0]]).values()) == {0.0}


# --- functions and libraries ----------------------------------------------------------------------


def test_a_name_stands_for_its_latest_version(sandbox: MontySandbox) -> None:
    [task, other] = PAIRS[0]
    store = FunctionStore()
    for body, version in (("1", 1), ("2", 2), ("2", 2), ("1", 3)):
        [made] = functions(f"def f():\n    return {body}")
        assert store.add(made, task).version == version
    assert [one.version for one in store.versions("f")] == [1, 2, 3]
    assert [one.function.code[-1] for one in store.latest()] == ["1"]
    assert store.versions("g") == []
    assert store.pick(other, 3, by="scenario") == store.latest()
    assert store.pick(PAIRS[1][0], 3, by="scenario") == []


def test_what_is_broken_never_reaches_a_prompt(sandbox: MontySandbox) -> None:
    code = """
import math
def good(x):
    lines = [str(each) for each in range(x)]
    return math.floor(len(lines)) + shop_balance()
def uses(x):
    return good(x)
def stranger(x):
    return missing(x)
def of_a_stranger(x):
    return stranger(x)
def default(x=1 / 0):
    return x
"""
    found = asyncio.run(sound(functions(code), sandbox, CALLS))
    assert [one.name for one in found] == ["good", "uses"]
    alone = Function(name="f", code="def f():\n    return shop_balance()")
    assert asyncio.run(sound([alone], sandbox)) == []


def test_only_functions_of_code_that_ran_are_written(sandbox: MontySandbox) -> None:
    task = PAIRS[0][0]
    made = ran(sandbox, task, "def a():\n    return 1\na()", "def b():\n    return 1\nmissing()")
    assert [one.name for one in written(made)] == ["a"]


def test_found_again_by_words_meaning_and_both(measures: ModuleType) -> None:
    from agentloop.store.embed import WordLlamaEmbedder

    store = FunctionStore()
    for at, (first, _) in enumerate(PAIRS[:12]):
        [made] = functions(solution(first).replace(f"{first.family}(", f"task_{at}(", 1))
        store.add(made, first)
    for by in ("words", "meaning", "fused"):
        picked = [store.pick(two, 1, by=by, embedder=WordLlamaEmbedder()) for _, two in PAIRS[:12]]
        right = sum(
            p[0].task.family == two.family for p, (_, two) in zip(picked, PAIRS, strict=False)
        )
        assert right >= 11, by
    with pytest.raises(ValueError, match="needs an embedder"):
        store.pick(PAIRS[0][1], 1, by="meaning")


def test_a_cycle_keeps_libraries_apart(report: Any, tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        made = list(archive.episodes(Query(purpose="collect")))
    seconds = [one for one in made if one.task.data[CHAIN]["position"] == 2]  # type: ignore[call-overload, index]
    firsts = {
        (one.task.data["scenario"], one.task.data[CHAIN]["member"]): one  # type: ignore[call-overload, index]
        for one in made
        if one.task.data[CHAIN]["position"] == 1  # type: ignore[call-overload, index]
    }
    assert len(seconds) == len(firsts) == 64
    bare = 0
    for one in seconds:
        place: Any = one.task.data[CHAIN]
        first = firsts[one.task.data["scenario"], place["member"]]
        known: Any = one.task.data[LIBRARY]
        assert [each["name"] for each in known] == [each.name for each in written(first)]
        assert one.task.prompt.startswith("Functions:") == bool(known)
        bare += not known
    assert 0 < bare < len(seconds)


def test_a_prompt_shows_what_there_is(sandbox: MontySandbox) -> None:
    [first, second] = pair_of("reschedule")
    store = FunctionStore()
    assert with_library(second, store, 2, 0).prompt == second.prompt
    [made] = functions(solution(first))
    store.add(made, first)
    shown = with_library(second, store, 2, 5)
    assert shown.prompt == f"Functions:\nreschedule(title, day)\n\n{second.prompt}"
    assert shown.id == second.id and shown.data[CHAIN] == {"position": 2, "member": 5}


# --- the experiments ------------------------------------------------------------------------------


def test_the_toy_writes_real_programs(sandbox: MontySandbox) -> None:
    toy = load_file(FOLDER / "toy.py")
    keep = [toy.KEEP] * toy.LINES
    for first, second in PAIRS[:12]:
        if first.family not in toy.PROCEDURES:
            continue
        none = [False] * (1 + toy.LINES)
        for way in (toy.DIRECT, toy.DEFINE):
            assert ran(sandbox, first, toy.program(first, [way, *keep], none)).success
            left_out = [way, toy.LEAVE, *keep[1:]]
            assert not ran(sandbox, first, toy.program(first, left_out, none)).success
            slip = [False, False, True, *none[3:]]
            assert not ran(sandbox, first, toy.program(first, [way, *keep], slip)).success
        good, fixed = (
            toy.program(first, [toy.DEFINE, option, *keep[1:]], none).rpartition(
                "\n" + first.family
            )[0]
            for option in (toy.KEEP, toy.VALUES)
        )
        call = toy.program(second, [toy.CALL], [False])
        assert ran(sandbox, second, call, known=good).success
        assert not ran(sandbox, second, call, known=fixed).success
        assert not ran(sandbox, second, call).success


@pytest.mark.slow
def test_the_skill_integrated_reward_teaches_reuse(measures: ModuleType) -> None:
    found = asyncio.run(measures.compare(seed=0))
    assert found["skill_minus_outcome"] >= 0.1
    assert found["use_over_outcome"] >= 2
    for rule in ("skill", "chain", "outcome"):
        assert found[f"{rule}.rollouts"] == found["skill.rollouts"]


def test_what_is_compared_on_the_model(measures: ModuleType) -> None:
    def rolled(success: bool, replies: int, tokens: int) -> Episode:
        turns = [
            Turn((0,) if not at else (), (1,) * tokens, (-1.0,) * tokens) for at in range(replies)
        ]
        made = episode("e", "t", turns, float(success), "r")
        return replace(made, score=Score(value=float(success), success=success, source="t"))

    alone = [rolled(True, 2, 50), rolled(True, 2, 50), rolled(False, 4, 90)] * 4
    known = [rolled(True, 1, 20), rolled(True, 1, 40), rolled(True, 1, 20)] * 4
    taken = [rolled(False, 4, 9), rolled(False, 4, 9), rolled(True, 2, 9)] * 4
    found = measures.judged({"alone": alone, "library": known, "taken": taken})
    assert found["both"] == 8 and found["steps_ratio"] == 0.5
    assert found["tokens_ratio"] == pytest.approx(0.3)
    assert found["library_minus_alone"] == pytest.approx(1 / 3)
    assert found["taken.p"] == pytest.approx(1 / 256)


def test_the_expert_shows_what_the_agent_would_write(sandbox: MontySandbox) -> None:
    expert = load_file(FOLDER / "expert.py")
    for first, second in PAIRS[:12]:
        output = ran(sandbox, second, expert.look(second)).state["turns"]
        assert output[0]["error"] == "" and "print(" in expert.look(second), first.family  # type: ignore[call-overload, index]
