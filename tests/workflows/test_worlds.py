"""A workflow whose rollouts each own a world: nothing of one is seen by another, and what each
ended in is in its episode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentloop.cli import run
from agentloop.errors import UsageError
from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Episode, Request, Sampling, Task
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import read_profile
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.tools.functions import functions
from agentloop.trajectories.codec import to_json
from agentloop.workflows.load import load
from agentloop.workflows.rerun import impossible
from agentloop.workflows.worlds import LIBRARY, Worlds
from agentloop.workspace import Workspace
from agentloop.worlds.apps.tasks import AppsTasks, reached, solution
from agentloop.worlds.apps.world import Apps
from agentloop.worlds.storeroom import Storeroom, plan
from agentloop.worlds.storeroom_tasks import StoreroomTasks

ROOT = Path(__file__).resolve().parents[2]
TASKS = AppsTasks().draw(24, split="train", seed=2)
BY_PROMPT = {task.prompt: task for task in TASKS}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MontySandbox]:
    found = MontySandbox(read_profile(ROOT / "sandboxes" / "monty" / "profile.yaml"))
    yield found
    asyncio.run(found.close())


def expert(request: Request) -> str:
    """The model: a program for the task in the prompt, or an answer once it was run."""
    asked = [one.content for one in request.messages if one.role == "user"]
    if len(asked) > 1:
        return "Answer: done"
    task = BY_PROMPT[asked[0].partition("\n\n")[0]]
    return f"```python\n{solution(task, known=LIBRARY in task.data)}\n```"


def rolled(worlds: Worlds, tasks: list[Task], replies: Any = expert) -> list[Episode]:
    attempts = [
        Attempt(
            task=task, bundle="b", system="", sampling=Sampling(seed=1), purpose="eval", run="r"
        )
        for task in tasks
    ]
    runner = Runner(load_graph("react", (ROOT,), ROOT), native_tools=False, own=worlds.own)
    run_ = runner.run(attempts, model=Scripted(replies), tools=worlds.tools())
    return asyncio.run(run_)


def test_each_rollout_has_a_world_of_its_own(sandbox: MontySandbox) -> None:
    made = rolled(Worlds(Apps, sandbox, code=True), TASKS)
    for episode in made:
        assert reached(episode).success, reached(episode).feedback
        [turn] = episode.state["turns"]  # type: ignore[misc]
        assert turn["code"].strip() == solution(episode.task)  # type: ignore[index, call-overload, union-attr]
    shown = made[0].trajectories[0].nodes
    assert any("The apps are calendar" in node.message.content for node in shown)
    assert not any("goal" in node.message.content for node in shown)


def test_a_library_in_the_task_can_be_called(sandbox: MontySandbox) -> None:
    library = [to_json(one) for one in functions(solution(TASKS[0]))]
    known = Task(id="t", prompt=TASKS[1].prompt, family=TASKS[1].family,
                 data={**TASKS[1].data, LIBRARY: library})  # fmt: skip
    BY_PROMPT[known.prompt] = known
    try:
        [episode] = rolled(Worlds(Apps, sandbox, code=True), [known])
    finally:
        BY_PROMPT[known.prompt] = TASKS[1]
    assert reached(episode).success
    [turn] = episode.state["turns"]  # type: ignore[misc]
    assert [each["name"] for each in turn["used"]] == [TASKS[0].family]  # type: ignore[index, call-overload, union-attr]


def test_without_code_the_calls_are_tools(sandbox: MontySandbox) -> None:
    tasks = StoreroomTasks().draw(4, split="train", seed=0)
    plans = {task.prompt: plan(task) for task in tasks}

    def replies(request: Request) -> str:
        asked = [one.content for one in request.messages if one.role == "user"]
        calls, done = plans[asked[0].partition("\n\n")[0]], len(asked) - 1
        if done == len(calls):
            return "Answer: done"
        given = "\n".join(f"{key}: {value}" for key, value in calls[done].arguments.items())
        return f"```{calls[done].name}\n{given}\n```"

    worlds = Worlds(Storeroom, sandbox)
    assert [tool.spec.name for tool in worlds.tools()] == ["look", "go", "take", "use", "put"]
    for episode in rolled(worlds, tasks, replies):
        assert "A note says" in episode.trajectories[0].nodes[0].message.content
        assert episode.state["moves"]


@pytest.mark.parametrize(
    ("make", "told"), [(dict, "lacks `tools`"), (Storeroom, "code cannot act")]
)
def test_what_is_no_world_is_told(make: Any, told: str, sandbox: MontySandbox) -> None:
    with pytest.raises(UsageError, match=told):
        Worlds(make, sandbox, code=True).tools()
    with pytest.raises(UsageError, match="lends code no functions"):
        Worlds(Apps, object(), code=True).tools()  # type: ignore[arg-type]


PAGE = """\
title: apps
model: scripted
tasks: {use: agentloop.worlds.apps.tasks:AppsTasks, siblings: 1}
tools: [python]
world: agentloop.worlds.apps.world:Apps
reward: agentloop.worlds.apps.tasks:Reached
limits: {turns: 3}
scripted:
  tasks: {use: agentloop.worlds.apps.tasks:AppsTasks, siblings: 1}
  replies: "./parts.py:replies"
"""
PARTS = """\
from agentloop.worlds.apps.tasks import AppsTasks, solution
KNOWN = {t.prompt: t for t in AppsTasks(siblings=1).draw(12, split="heldout", seed=0)}
def replies(request):
    asked = [one.content for one in request.messages if one.role == "user"]
    if len(asked) > 1:
        return "Answer: done"
    return "```python\\n" + solution(KNOWN[asked[0].partition("\\n\\n")[0]]) + "\\n```"
"""


def test_the_key_of_a_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "workflows" / "mine"
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(PAGE)
    (folder / "parts.py").write_text(PARTS)
    home = str(tmp_path / "home")
    assert run(["eval", str(folder), "--n", "12", "--home", home]) == 0, capsys.readouterr().err
    with Archive(tmp_path / "home") as archive:
        made = list(archive.episodes(Query(purpose="eval")))
    assert len(made) == 12 and all(one.success for one in made)
    assert all(one.state["turns"] for one in made)
    assert "acted in a world" in impossible(made[0])
    capsys.readouterr()
    page = {**yaml.safe_load(PAGE), "world": "agentloop.worlds.apps.world:App"}
    (folder / "workflow.yaml").write_text(yaml.safe_dump(page))
    assert run(["eval", str(folder), "--n", "1", "--home", home]) == 2
    assert "did you mean `Apps`" in capsys.readouterr().err
    page = {**yaml.safe_load(PAGE), "command": ["sh"], "tools": []}
    with pytest.raises(UsageError, match="a `world` is for graphs"):
        (folder / "workflow.yaml").write_text(yaml.safe_dump(page))
        load(str(folder), Workspace((tmp_path,)))
