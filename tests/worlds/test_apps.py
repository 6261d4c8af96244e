"""The apps: an expert solves every scenario, anything less or more does not, and what is refused
changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import GraderError, UnknownName, UsageError
from agentloop.ports import Reward, Snapshots, Tasks, World
from agentloop.records import Episode, Failure, Score, Task, ToolCall
from agentloop.worlds.actions import ToolWorld, world_tools
from agentloop.worlds.apps.calls import CALLS, Refused
from agentloop.worlds.apps.families import FAMILIES, SIBLINGS
from agentloop.worlds.apps.tasks import (
    AppsTasks,
    Reached,
    chains,
    family_named,
    scenario,
    solution,
    split_of,
)
from agentloop.worlds.apps.world import CALLS_AT_MOST, Apps
from agentloop.worlds.conformance import check_world

monty = pytest.importorskip("pydantic_monty")
SCENARIOS = 240


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    with monty.Monty(min_processes=1, max_processes=1) as found:
        yield found


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return AppsTasks().draw(SCENARIOS * SIBLINGS, split="train", seed=0)


def run(pool: Any, task: Task, code: str, known: str = "") -> Apps:
    """The world after a program, which runs in the sandbox."""
    world = Apps()
    world.reset(task, 0)

    def bound(name: str) -> Any:
        def function(*given: Any, **named: Any) -> Any:
            assert not given
            return world.value(name, named)

        return function

    with pool.checkout() as session:
        session.feed_run(f"{known}\n{code}", external_lookup={name: bound(name) for name in CALLS})
    return world


def score(task: Task, state: Any, failure: Failure | None = None) -> Score:
    made = Episode(
        id="ep", task=task, bundle="b", purpose="eval", run="r", seed=0, state=state,
        failure=failure,
    )  # fmt: skip
    [found] = asyncio.run(Reached().score([made]))
    return found


def log_of(pool: Any, task: Task) -> list[ToolCall]:
    """The calls of the expert that change something, and its `finish`."""
    seen: list[ToolCall] = []
    world = Apps()
    world.reset(task, 0)

    def bound(name: str) -> Any:
        def function(**given: Any) -> Any:
            before = len(world.snapshot()["effects"])  # type: ignore[arg-type]
            value = world.value(name, given)
            if name in ("finish", "shop_put") or len(world.snapshot()["effects"]) > before:  # type: ignore[arg-type]
                seen.append(ToolCall(id=f"c{len(seen)}", name=name, arguments=given))
            return value

        return function

    with pool.checkout() as session:
        session.feed_run(solution(task), external_lookup={name: bound(name) for name in CALLS})
    return seen


def replayed(task: Task, calls: list[ToolCall]) -> Any:
    world = Apps()
    world.reset(task, 0)
    for call in calls:
        world.act(call)
    return world.snapshot()


def first_of_each(tasks: list[Task]) -> list[Task]:
    return list({task.family: task for task in reversed(tasks)}.values())


def test_it_satisfies_the_ports() -> None:
    assert isinstance(Apps(), World) and isinstance(Apps(), Snapshots)
    assert isinstance(Apps(), ToolWorld)
    assert isinstance(AppsTasks(), Tasks) and isinstance(Reached(), Reward)


def test_six_apps_with_forty_typed_calls() -> None:
    apps = {call.app for call in CALLS.values()} - {"apps", "finish"}
    assert apps == {"calendar", "contacts", "files", "messages", "notes", "shop"}
    assert len(CALLS) >= 40
    for call in CALLS.values():
        assert call.spec.description.strip()
        assert call.spec.parameters["additionalProperties"] is False


def test_the_expert_solves_every_scenario(pool: Any, tasks: list[Task]) -> None:
    assert len({task.data["scenario"] for task in tasks}) == SCENARIOS
    assert len({task.id for task in tasks}) == len(tasks)
    longest = 0
    for task in tasks:
        world = run(pool, task, solution(task))
        state = world.snapshot()
        found = score(task, state)
        assert found.success, (task.family, task.prompt, found.feedback)
        longest = max(longest, int(str(state["calls"])))
    assert 2 * longest <= CALLS_AT_MOST


def test_the_function_of_one_sibling_solves_the_next(pool: Any, tasks: list[Task]) -> None:
    for first, second in list(chains(tasks))[::5]:
        known = solution(first).rpartition("\n\n")[0]
        assert solution(second, known=True) not in solution(first)
        state = run(pool, second, solution(second, known=True), known).snapshot()
        assert score(second, state).success


def test_what_is_asked_is_told_in_the_prompt(tasks: list[Task]) -> None:
    for task in tasks:
        arguments = task.data["arguments"]
        assert isinstance(arguments, dict)
        assert all(str(value) in task.prompt for value in arguments.values())
        assert tuple(arguments) == family_named(task.family).parameters


def test_a_program_of_a_sibling_fails(pool: Any, tasks: list[Task]) -> None:
    for first, second in list(chains(tasks))[::3]:
        assert not score(second, run(pool, second, solution(first)).snapshot()).success


def test_leaving_out_any_effect_fails(pool: Any, tasks: list[Task]) -> None:
    for task in first_of_each(tasks):
        calls = log_of(pool, task)
        assert score(task, replayed(task, calls)).success
        for at, call in enumerate(calls):
            if call.name == "finish" and task.family != "total_spent":
                continue
            assert not score(task, replayed(task, calls[:at] + calls[at + 1 :])).success, call


STRAY = [
    ToolCall(id="s1", name="files_write", arguments={"path": "/stray.txt", "text": "x"}),
    ToolCall(id="s2", name="messages_send", arguments={"to": "", "text": "hello"}),
    ToolCall(id="s3", name="contacts_change",
             arguments={"contact": "c8", "field": "email", "value": "x@example.org"}),
    ToolCall(id="s4", name="calendar_add", arguments={"title": "Nap", "day": "2026-03-09"}),
    ToolCall(id="s5", name="shop_put", arguments={"product": "p1", "count": 1}),
    ToolCall(id="s6", name="notes_tag", arguments={"note": "n2", "tag": "later"}),
]  # fmt: skip


@pytest.mark.parametrize("stray", STRAY, ids=lambda call: call.name)
def test_collateral_damage_fails(pool: Any, tasks: list[Task], stray: ToolCall) -> None:
    for task in first_of_each(tasks):
        start = task.data["start"]
        assert isinstance(start, dict)
        contacts: Any = start["contacts"]
        given = dict(stray.arguments)
        if stray.name == "messages_send":
            given["to"] = contacts["c1"]["name"]
        if stray.name == "shop_put":
            products: Any = start["products"]
            given["product"] = next(key for key, one in products.items() if one["stock"] > 0)
        before = ToolCall(id="s", name=stray.name, arguments=given)
        [*work, end] = log_of(pool, task)
        assert not score(task, replayed(task, [*work, before, end])).success, task.family


def test_doing_it_twice_and_doing_nothing_fail(pool: Any, tasks: list[Task]) -> None:
    for task in first_of_each(tasks):
        assert not score(task, replayed(task, [])).success
        [*work, end] = log_of(pool, task)
        twice = replayed(task, [*work, *work, end])
        moved = {"cancel_orders", "put_away", "invite_group"}  # a second time is refused
        if task.family not in moved and work:
            wanted = task.family in ("write_total", "file_note")  # the same text once more
            assert score(task, twice).success == wanted, task.family


def test_another_way_to_the_same_state_counts(pool: Any, tasks: list[Task]) -> None:
    task = next(task for task in tasks if task.family == "file_note")
    [*work, end] = log_of(pool, task)
    draft = [
        ToolCall(id="a", name="notes_add", arguments={"title": "draft", "text": "x"}),
        ToolCall(id="b", name="notes_delete", arguments={"note": "n101"}),
    ]
    assert score(task, replayed(task, [*draft, *reversed(work), end])).success
    assert not score(task, replayed(task, [*draft[:1], *work, end])).success  # the draft is left


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_world_keeps_the_port(family: Any, pool: Any) -> None:
    random = Random(3)
    task = next(made for _ in range(50) if (made := scenario(family, "Kim Kern", random)))[1]
    calls = log_of(pool, task)
    look = ToolCall(id="look", name="apps_show", arguments={"app": "shop"})
    assert check_world(Apps, task, calls) == []
    assert check_world(Apps, task, [look, *calls[:1], look, *calls]) == []


def test_the_splits_do_not_overlap_and_draws_repeat() -> None:
    train = AppsTasks().draw(150, split="train", seed=1)
    heldout = AppsTasks().draw(150, split="heldout", seed=1)
    assert train == AppsTasks().draw(150, split="train", seed=1)
    names = [{str(task.data["scenario"]) for task in each} for each in (train, heldout)]
    assert not names[0] & names[1]
    assert {split_of(str(task.data["owner"])) for task in heldout} == {"heldout"}
    assert not {task.prompt for task in train} & {task.prompt for task in heldout}
    assert train[:36] == AppsTasks().draw(36, split="train", seed=1)
    assert len({task.family for task in train[: SIBLINGS * len(FAMILIES)]}) == len(FAMILIES)
    single = AppsTasks(families=("put_away",), siblings=1).draw(5, split="train", seed=0)
    assert len({task.data["scenario"] for task in single}) == 5
    with pytest.raises(UnknownName, match="put_away"):
        AppsTasks(families=("put_awy",)).draw(1, split="train", seed=0)


WRONG = [
    ("files_reed", {}, "there is no call `files_reed`"),
    ("files_read", {}, "lacks the argument `path`"),
    ("files_read", {"path": 3}, "`path` of `files_read` is a int"),
    ("shop_put", {"product": "p1", "count": True}, "is a bool"),
    ("files_read", {"path": "/a", "line": 1}, "has no argument `line`"),
    ("files_read", {"path": "/nowhere"}, "there is no `/nowhere` among the files"),
    ("files_write", {"path": "a.txt", "text": ""}, "is no path"),
    ("calendar_add", {"title": "x", "day": "Monday"}, "is no day"),
    ("messages_send", {"to": "Nobody", "text": "x"}, "not among the contacts"),
    ("shop_buy", {}, "the cart is empty"),
    ("shop_put", {"product": "p1", "count": 999}, "can be had from 0 to"),
    ("apps_show", {"app": "music"}, "there is no app `music`"),
    ("files_write", {"path": "/a", "text": "x" * 5000}, "longer than 4000"),
    ("shop_cancel", {"order": "o99"}, "there is no `o99` among the orders"),
]


@pytest.mark.parametrize(("name", "given_", "told"), WRONG)
def test_a_wrong_call_is_told_and_changes_nothing(
    name: str, given_: dict[str, Any], told: str, tasks: list[Task]
) -> None:
    world = Apps()
    world.reset(tasks[0], 0)
    before = world.snapshot()
    seen = world.act(ToolCall(id="c", name=name, arguments=given_))
    assert seen.text.startswith("Error: ") and told in seen.text
    assert world.snapshot() == {**before, "calls": 1}


VALUES = st.one_of(st.text(max_size=8), st.integers(-2, 20), st.none(), st.lists(st.integers()))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_calls_leave_a_state_that_can_be_restored(data: st.DataObject) -> None:
    task = AppsTasks().draw(1, split="train", seed=data.draw(st.integers(0, 3)))[0]
    start: Any = task.data["start"]
    ids = sorted(key for table in start.values() for key in table)
    world, other = Apps(), Apps()
    world.reset(task, 0)
    for _ in range(data.draw(st.integers(1, 6))):
        call = CALLS[data.draw(st.sampled_from(sorted(CALLS)))]
        given_ = {name: data.draw(VALUES | st.sampled_from(ids)) for name in call.kinds}
        before = world.snapshot()
        other.restore(json.loads(json.dumps(before)))
        act = ToolCall(id="c", name=call.name, arguments=given_)
        seen = world.act(act)
        assert other.act(act) == seen and other.snapshot() == world.snapshot()
        if seen.text.startswith("Error"):
            assert world.snapshot()["tables"] == before["tables"]


def test_what_a_caller_is_told_is_not_the_state(tasks: list[Task]) -> None:
    world = Apps()
    world.reset(tasks[0], 0)
    told: Any = world.value("calendar_get", {"event": "e1"})
    before = world.snapshot()["tables"]
    told["guests"].append("Mallory")
    assert world.snapshot()["tables"] == before
    assert tasks[0].data["start"] == before


def test_it_ends_with_finish_or_after_so_many_calls(tasks: list[Task]) -> None:
    world = Apps()
    world.reset(tasks[0], 0)
    call = ToolCall(id="c", name="shop_balance", arguments={})
    done = [world.act(call).done for _ in range(CALLS_AT_MOST + 1)]
    assert done.index(True) == CALLS_AT_MOST - 1 and done[-1]
    with pytest.raises(Refused, match="it is over"):
        world.value("shop_balance", {})
    tools = world_tools(world)
    world.reset(tasks[0], 0)
    [end] = [tool for tool in tools if tool.spec.name == "finish"]
    assert asyncio.run(end.call({"answer": "5"})) == "null" and end.done
    assert world.snapshot()["answer"] == "5"


def test_only_what_ended_in_the_apps_is_scored(tasks: list[Task]) -> None:
    state = replayed(tasks[0], [])
    with pytest.raises(GraderError, match="no state of the apps"):
        score(tasks[0], {})
    with pytest.raises(GraderError, match="ended by sandbox_error"):
        score(tasks[0], state, Failure(reason="sandbox_error", detail=""))
    assert not score(tasks[0], state, Failure(reason="turn_limit", detail="")).success
    with pytest.raises(UsageError, match="has no `start`"):
        Apps().reset(Task(id="t", prompt="p"), 0)
