"""Who goes on when many rollouts share one processor."""

from __future__ import annotations

import asyncio

import pytest

from agentloop.graphs.pace import Pace, Place


def test_places_are_given_in_order_and_passed_on() -> None:
    async def scene() -> list[int]:
        pace, went = Pace(places=2, seconds=60), list[int]()

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


def test_who_keeps_a_place_holds_nobody_up() -> None:
    async def scene() -> None:
        pace = Pace(places=1, seconds=0.01)
        keeps, waits = Place(pace), Place(pace)
        await keeps.enter()
        await asyncio.wait_for(waits.enter(), 5)
        keeps.leave()  # it has none any more: nothing is passed on twice
        late = asyncio.create_task(Place(pace).enter())
        await asyncio.sleep(0)
        assert not late.done()
        waits.leave()
        await asyncio.wait_for(late, 5)

    asyncio.run(scene())


@pytest.mark.parametrize("given", [False, True])
def test_a_cancelled_rollout_leaves_its_turn_to_the_next(given: bool) -> None:
    async def scene() -> None:
        pace = Pace(places=1, seconds=60)
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
        pace = Pace(places=2, seconds=60)
        full, mine = Place(pace), Place(pace)
        await asyncio.gather(mine.enter(), mine.enter(), full.enter())
        other = asyncio.create_task(Place(pace).enter())
        await asyncio.sleep(0)
        assert not other.done()
        mine.leave()
        await asyncio.wait_for(other, 5)

    asyncio.run(scene())
