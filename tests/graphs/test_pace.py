"""Who goes on when many rollouts share one processor."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from rollout_fixtures import attempt, react

from agentloop.graphs.pace import Pace, Place
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Json, Request, ToolSpec


def strict(places: int) -> Pace:
    """One that never takes the processor for free."""
    return Pace(places, quiet=-1.0, longest=math.inf)


def test_places_are_given_in_order_and_passed_on() -> None:
    async def scene() -> list[int]:
        pace, went = strict(2), list[int]()

        async def rollout(number: int) -> None:
            place = Place(pace)
            await place.enter()
            went.append(number)
            await asyncio.sleep(0.001)
            assert len(went) <= number + 2  # nobody who came later went first
            place.leave()

        await asyncio.gather(*(rollout(number) for number in range(20)))
        return went

    assert asyncio.run(scene()) == list(range(20))


@pytest.mark.parametrize("pace", [
    Pace(1, quiet=1.0, longest=math.inf), Pace(1, quiet=-1.0, longest=0.01),
])  # fmt: skip
def test_who_waits_for_something_else_holds_nobody_up(pace: Pace) -> None:
    async def scene() -> None:
        sleeps, follows = Place(pace), Place(pace)
        await sleeps.enter()
        await asyncio.wait_for(follows.enter(), 5)
        sleeps.leave()  # it has none any more: nothing is passed on twice
        late = asyncio.create_task(Place(pace).enter())
        await asyncio.sleep(0)
        assert not late.done()
        follows.leave()
        await asyncio.wait_for(late, 5)

    asyncio.run(scene())


def test_tools_that_wait_do_not_take_turns() -> None:
    async def scene() -> float:
        pace = Pace()

        async def rollout() -> None:
            place = Place(pace)
            await place.enter()
            await asyncio.sleep(0.2)
            place.leave()

        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(rollout() for _ in range(1000)))
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(scene()) < 2.0  # 0.2 s, and 12 s when places are waited for


@pytest.mark.parametrize("given", [False, True])
def test_a_cancelled_rollout_leaves_its_turn_to_the_next(given: bool) -> None:
    async def scene() -> None:
        pace = strict(1)
        first, gone, last = Place(pace), Place(pace), Place(pace)
        await first.enter()
        leaving = asyncio.create_task(gone.enter())
        following = asyncio.create_task(last.enter())
        await asyncio.sleep(0)
        if given:  # cancelled between being given the place and going on
            first.leave()
        leaving.cancel()
        await asyncio.wait([leaving])
        first.leave()
        await asyncio.wait_for(following, 5)

    asyncio.run(scene())


def test_calls_of_one_rollout_side_by_side_hold_one_place() -> None:
    async def scene() -> None:
        pace = strict(2)
        full, also, mine = Place(pace), Place(pace), Place(pace)
        await asyncio.gather(full.enter(), also.enter())
        both = asyncio.gather(mine.enter(), mine.enter())
        await asyncio.sleep(0)
        full.leave()
        also.leave()
        await asyncio.wait_for(both, 5)
        await asyncio.wait_for(full.enter(), 5)  # the second place is free
        mine.leave()
        await asyncio.wait_for(also.enter(), 5)

    asyncio.run(scene())


class Lookup:
    """A tool that says how many rollouts are past their model at a time."""

    spec = ToolSpec(
        name="add", description="Look.", parameters={"type": "object", "properties": {}}
    )
    now = most = 0

    async def call(self, arguments: dict[str, Json]) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(5):
            await asyncio.sleep(0)
        self.now -= 1
        return "42"


class Crowd:
    """A model that answers when so many rollouts have asked."""

    def __init__(self, wanted: int) -> None:
        self.replies = Scripted(lambda request: "Answer: 42" if "42" in str(request) else CALL)
        self.asked, self.wanted, self.all = 0, wanted, asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        if self.asked == self.wanted:
            self.all.set()
        await asyncio.wait_for(self.all.wait(), 5)
        return await self.replies.complete(request)


CALL = "I look.\n```add\n{}\n```"


def test_rollouts_go_on_one_by_one_but_ask_together() -> None:
    async def scene() -> tuple[Any, int]:
        tool, crowd = Lookup(), Crowd(8)

        runner = Runner(react(), native_tools=False)
        with runner.opened(model=crowd, tools=(tool,)) as batch:
            batch.pace = strict(1)
            asked = (batch.rollout(attempt(f"{n}")) for n in range(8))
            done = await asyncio.wait_for(asyncio.gather(*asked), 30)
        return done, tool.most

    done, most = asyncio.run(scene())
    assert [one.answer for one in done] == ["42"] * 8 and most == 1
