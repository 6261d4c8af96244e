"""Code in a world: it acts only through calls, and what it used is noted where it cannot write."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentloop.errors import ToolError
from agentloop.ports import Lends
from agentloop.records import Task
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import read_profile
from agentloop.tools.functions import functions
from agentloop.tools.world_code import ENDED, WorldCode
from agentloop.worlds.apps.tasks import AppsTasks, chains, solution
from agentloop.worlds.apps.world import Apps

ROOT = Path(__file__).resolve().parents[2]
TASKS = AppsTasks().draw(72, split="train", seed=4)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MontySandbox]:
    found = MontySandbox(read_profile(ROOT / "sandboxes" / "monty" / "profile.yaml"))
    yield found
    asyncio.run(found.close())


def task_of(family: str) -> list[Task]:
    return next(pair for pair in chains(TASKS) if pair[0].family == family)


def tool(sandbox: MontySandbox, task: Task, known: str = "") -> WorldCode:
    world = Apps()
    world.reset(task, 0)
    assert isinstance(sandbox, Lends)
    return WorldCode(world, sandbox, functions(known))


def call(made: WorldCode, code: str) -> str:
    return asyncio.run(made.call({"code": code}))


def used(made: WorldCode) -> list[dict[str, Any]]:
    return [each for turn in made.turns for each in turn["used"]]


def test_a_program_acts_through_calls_and_ends_the_task(sandbox: MontySandbox) -> None:
    [task, _] = task_of("reschedule")
    made = tool(sandbox, task)
    assert "Error" not in call(made, "print(len(calendar_day('2026-03-04')))")
    assert call(made, solution(task)) == ENDED
    assert made.world.effects()[0][0] == "calendar_move"
    assert "it is over" in call(made, "shop_balance()")


def test_errors_are_told_and_the_state_holds_what_was_done_before(sandbox: MontySandbox) -> None:
    made = tool(sandbox, TASKS[0])
    told = call(made, "notes_add(title='a', text='b')\nfiles_read(path='/none')\nprint(1)")
    assert told == "ValueError: there is no `/none` among the files"
    assert [name for name, _ in made.world.effects()] == ["notes_add"]
    assert "lacks the argument" in call(made, "files_read()")
    assert "takes at most 1" in call(made, "files_read('/a', 'b')")
    caught = "try:\n    files_read(path='/none')\nexcept ValueError as e:\n    print('caught', e)"
    assert call(made, caught).startswith("caught there is no")
    with pytest.raises(ToolError, match="give `code`"):
        asyncio.run(made.call({"code": 3}))


def test_own_functions_stay_known_and_variables_do_not(sandbox: MontySandbox) -> None:
    made = tool(sandbox, TASKS[0])
    call(made, "def coins():\n    return shop_balance()\nleft = coins()")
    assert call(made, "print(coins())") == "1000"
    assert "NameError" in call(made, "print(left)")
    call(made, "def bad():\n    return 1\nraise ValueError('no')")
    assert "NameError" in call(made, "print(bad())")
    assert used(made) == []  # one's own of this task are not the library's


def test_a_known_function_that_does_the_work_is_noted_with_what_it_changed(
    sandbox: MontySandbox,
) -> None:
    [first, second] = task_of("file_note")
    made = tool(sandbox, second, solution(first).rpartition("\n\n")[0])
    assert call(made, solution(second, known=True)) == ENDED
    [each] = used(made)
    assert each["name"] == "file_note"
    assert [name for name, _ in each["inside"]] == ["files_write", "notes_delete"]


def test_a_returned_value_that_reaches_an_effect_is_noted(sandbox: MontySandbox) -> None:
    known = "def sum_up(a):\n    return shop_balance() + a\ndef idle():\n    return 1"
    made = tool(sandbox, TASKS[0], known)
    call(made, "idle()\nx = sum_up(1)\nfiles_write(path='/x', text=str(x))\nfinish('done')")
    found = {each["name"]: each["reached"] for each in used(made)}
    assert found == {"idle": [], "sum_up": [["files_write", ["files//x"]]]}


FAKED = [
    "# idle()\nprint('idle()')",
    "def idle():\n    return 2\nidle()",
    "fails()",
    "try:\n    fails()\nexcept ValueError:\n    pass",
    "k_begin('idle')\nk_end('idle')",
    "x = 'idle'\nfinish(x)",
]


@pytest.mark.parametrize("code", FAKED)
def test_what_did_not_run_to_its_end_is_not_used(sandbox: MontySandbox, code: str) -> None:
    known = "def idle():\n    return 1\ndef fails():\n    raise ValueError('no')"
    made = tool(sandbox, TASKS[0], known)
    call(made, code)
    assert used(made) == []


def test_a_failed_function_ends_nothing_around_it(sandbox: MontySandbox) -> None:
    inner = "def inner():\n    raise ValueError('no')\n"
    outer = "def outer():\n    try:\n        inner()\n    except ValueError:\n        return 1"
    made = tool(sandbox, TASKS[0], inner + outer)
    call(made, "outer()")
    assert [each["name"] for each in used(made)] == ["outer"]


def test_code_sees_no_files_and_no_world_beside_the_calls(sandbox: MontySandbox) -> None:
    made = tool(sandbox, TASKS[0])
    for code in ("open('/etc/passwd').read()", "import os\nprint(os.listdir('/'))",
                 "print(files_read.__globals__)", "print(files_read.__self__)"):  # fmt: skip
        told = call(made, code)
        assert "root" not in told and "Error" in told, told
    endless = tool(sandbox, TASKS[0])
    told = call(endless, "while True:\n    shop_balance()")
    assert "it is over" in told
