"""Every world of the package keeps the contract of the port."""

from __future__ import annotations

import pytest

from agentloop.records import ToolCall
from agentloop.worlds.conformance import check_world
from agentloop.worlds.storeroom import Storeroom, plan
from agentloop.worlds.storeroom_tasks import StoreroomTasks

LOOK = ToolCall(id="look", name="look", arguments={})


@pytest.mark.parametrize("seed", range(6))
def test_storeroom(seed: int) -> None:
    for task in StoreroomTasks().draw(4, split="train", seed=seed):
        calls = plan(task)
        assert check_world(Storeroom, task, calls, seed=seed) == []
        assert check_world(Storeroom, task, [LOOK, *calls[:2], LOOK, *calls[::-1]], seed=seed) == []
