"""The storeroom: its tasks can be solved in 5 to 8 steps, and only the right end counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import GraderError, UsageError
from agentloop.ports import Reward, Snapshots, Tasks, Tool, World
from agentloop.records import Episode, Failure, Observation, Score, Task, ToolCall
from agentloop.trajectories.codec import decode, encode
from agentloop.worlds.actions import ToolWorld, world_tools
from agentloop.worlds.storeroom import MOVES, ROOMS, TOOLS, Storeroom, plan
from agentloop.worlds.storeroom_tasks import Solved, StoreroomTasks


def _task(seed: int = 0) -> Task:
    return StoreroomTasks().draw(1, split="train", seed=seed)[0]


def _played(task: Task, calls: list[ToolCall]) -> tuple[Storeroom, list[Observation]]:
    world = Storeroom()
    return world, [world.reset(task, 0), *(world.act(call) for call in calls)]


def _score(task: Task, state: Any, failure: Failure | None = None) -> Score:
    made = Episode(
        id="ep",
        task=task,
        bundle="b",
        purpose="eval",
        run="r",
        seed=0,
        state=state,
        failure=failure,
    )
    (score,) = asyncio.run(Solved().score([made]))
    return score


def test_it_satisfies_the_ports() -> None:
    assert isinstance(Storeroom(), World) and isinstance(Storeroom(), Snapshots)
    assert isinstance(Storeroom(), ToolWorld)
    assert isinstance(StoreroomTasks(), Tasks) and isinstance(Solved(), Reward)


def test_200_seeds_are_solved_by_the_oracle_in_5_to_8_steps() -> None:
    lengths = set()
    for seed in range(200):
        source = StoreroomTasks(rooms=4 + seed % 3)
        (task,) = source.draw(seed % 4 + 1, split="heldout" if seed % 2 else "train", seed=seed)[
            -1:
        ]
        calls = plan(task)
        world, seen = _played(task, calls)
        assert [o.done for o in seen] == [False] * len(calls) + [True]
        assert _score(task, world.snapshot()).success
        for skipped in range(
            len(calls) if seed < 40 else 0
        ):  # no step is idle: without it the rest does not solve it
            short, _ = _played(task, calls[:skipped] + calls[skipped + 1 :])
            assert not _score(task, short.snapshot()).success
        lengths.add(len(calls))
    assert lengths == {5, 6, 7, 8}


def test_draws_are_repeatable_balanced_and_disjoint() -> None:
    source = StoreroomTasks()
    tasks = source.draw(12, split="train", seed=3)
    assert tasks == source.draw(12, split="train", seed=3)
    assert tasks[:5] == source.draw(5, split="train", seed=3)
    assert [task.family for task in tasks[:4]] == ["5 steps", "6 steps", "7 steps", "8 steps"]
    train = {t.id for seed in range(10) for t in source.draw(20, split="train", seed=seed)}
    held = {t.id for seed in range(10) for t in source.draw(20, split="heldout", seed=seed)}
    assert not train & held and len(train) == 200
    assert decode(Task, encode(tasks[0])) == tasks[0]
    with pytest.raises(UsageError, match="from 4 to 6"):
        StoreroomTasks(rooms=3).draw(1, split="train", seed=0)


def test_the_goal_is_asked_for_and_the_note_tells_where_all_is() -> None:
    task = _task()
    goal: Any = task.data["goal"]
    assert goal["thing"] in task.prompt and goal["room"] in task.prompt
    assert task.expected is None
    first = Storeroom().reset(task, 0).text
    house: Any = task.data["house"]
    for name in (*house["doors"], *house["where"]):
        assert name in first


def test_the_reset_seed_changes_the_telling_but_not_the_house() -> None:
    task = _task()
    told = {Storeroom().reset(task, seed).text for seed in range(8)}
    assert len(told) > 1
    assert len({"".join(sorted(text)) for text in told}) == 1


def test_the_wrong_bin_looks_like_the_right_one_and_scores_0() -> None:
    for seed in range(20):
        task = _task(seed)
        house: Any = task.data["house"]
        goal: Any = task.data["goal"]
        calls = plan(task)
        until_taken = calls[: [call.name for call in calls].index("use") + 2]
        if house["chest"] == goal["room"]:
            door = house["doors"][house["chest"]][0]
            until_taken.append(ToolCall(id="x", name="go", arguments={"room": door}))
        wrong_world, wrong = _played(task, [*until_taken, calls[-1]])
        right_world, right = _played(task, calls)
        room = str(wrong_world.snapshot()["at"])
        assert room != goal["room"] and wrong[-1].done
        assert wrong[-1].text.replace(room, goal["room"]) == right[-1].text
        assert _score(task, right_world.snapshot()).value == 1
        score = _score(task, wrong_world.snapshot())
        assert score.value == 0 and f"bin:{goal['room']}" in score.feedback


def test_after_the_last_move_nothing_happens() -> None:
    task = _task()
    look = ToolCall(id="l", name="look", arguments={})
    world, seen = _played(task, [look] * (MOVES + 2))
    assert [o.done for o in seen] == [False] * MOVES + [True] * 3
    before = world.snapshot()
    for call in plan(task):
        assert world.act(call).done
    assert world.snapshot() == before
    assert "never opened" in _score(task, before).feedback


def test_actions_explain_themselves() -> None:
    task = _task()
    house: Any = task.data["house"]
    world, _ = _played(task, [])

    def act(name: str, **arguments: Any) -> str:
        return world.act(ToolCall(id="x", name=name, arguments=arguments)).text

    assert "There is no action `fly`" in act("fly")
    assert act("take") == "`take` takes thing, as text."
    assert act("take", thing=3) == "`take` takes thing, as text."
    assert act("look", surplus="x") == "`look` takes nothing, as text."
    assert "No door leads" in act("go", room="moon")
    assert "cannot reach" in act("take", thing="sun")
    assert "You carry no" in act("use", thing=house["key"], target="chest")
    assert "You carry no" in act("put", thing="sun")
    door = house["doors"][house["start"]][0]
    assert f"You are in the {door}" in act("go", room=f" The {door.upper()} ")


def test_a_chest_opens_only_for_its_key_and_hides_its_things_until_then() -> None:
    for seed in range(30):
        task = _task(seed)
        house: Any = task.data["house"]
        spare = next(t for t in house["where"] if t.endswith("key") and t != house["key"])
        state = {
            "house": {name: house[name] for name in ("doors", "key", "chest")},
            "at": house["chest"], "where": {**house["where"], spare: "bag"}, "open": False,
            "moves": 0, "done": False, "order": 0,
        }  # fmt: skip
        world = Storeroom()
        world.restore(state)
        goal: Any = task.data["goal"]
        take = ToolCall(id="t", name="take", arguments={"thing": goal["thing"]})
        use = ToolCall(id="u", name="use", arguments={"thing": spare, "target": "chest"})
        assert "cannot reach" in world.act(take).text
        assert "does not fit" in world.act(use).text
        assert "cannot reach" in world.act(take).text
        assert world.snapshot()["moves"] == 3 and state["moves"] == 0


names = st.sampled_from([spec.name for spec in TOOLS] + ["fly"])
texts = st.one_of(st.text(max_size=8), st.sampled_from([*ROOMS, "chest", "brass key"]), st.none())
calls = st.builds(
    ToolCall,
    id=st.just("x"),
    name=names,
    arguments=st.dictionaries(st.sampled_from(["room", "thing", "target"]), texts, max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(calls, max_size=25))
def test_no_call_breaks_the_world_and_things_are_never_lost(given_calls: list[ToolCall]) -> None:
    task = _task()
    world, seen = _played(task, given_calls)
    house: Any = task.data["house"]
    state: Any = world.snapshot()
    assert set(state["where"]) == set(house["where"])
    assert all(observation.text for observation in seen)


def test_a_task_or_episode_without_a_house_is_refused() -> None:
    with pytest.raises(UsageError, match="no `house`"):
        Storeroom().reset(Task(id="t", prompt="x"), 0)
    with pytest.raises(GraderError, match="no state"):
        _score(_task(), {})
    with pytest.raises(GraderError, match="model_error"):
        world, _ = _played(_task(), [])
        _score(_task(), world.snapshot(), Failure(reason="model_error", detail=""))


def test_a_graph_can_use_the_world_as_tools() -> None:
    task = _task()
    world = Storeroom()
    world.reset(task, 0)
    tools = {tool.spec.name: tool for tool in world_tools(world)}
    assert all(isinstance(tool, Tool) for tool in tools.values())
    assert set(tools) == {"look", "go", "take", "use", "put"}

    async def play() -> None:
        for call in plan(task):
            assert not any(tool.done for tool in tools.values())
            assert await tools[call.name].call(call.arguments)
        assert all(tool.done for tool in tools.values())

    asyncio.run(play())
    assert _score(task, world.snapshot()).success
