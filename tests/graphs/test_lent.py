"""The lent model: system text, sampling, keys, limits; what the wrapped model is asked."""

from __future__ import annotations

import asyncio
import time

import pytest
from rollout_fixtures import attempt

from agentloop.errors import BudgetReached, LimitReached, UsageError
from agentloop.graphs.lent import LentModel, merge, with_system
from agentloop.models.journal import Journaled
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Limits, Message, Request, Sampling

USER = Message(role="user", content="hello")


class Asked:
    """Keeps the requests; replies `words`."""

    def __init__(self, words: str = "one two three") -> None:
        self.requests: list[Request] = []
        self._inner = Scripted(lambda request: words)

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        return await self._inner.complete(request)


def test_the_system_text_is_first_and_the_agents_own_follows() -> None:
    own = Message(role="system", content="own")
    assert with_system("", (own, USER)) == (own, USER)
    assert with_system("given", (USER,))[0] == Message(role="system", content="given")
    assert with_system("given", (own, USER)) == (
        Message(role="system", content="given\n\nown"), USER,
    )  # fmt: skip


def test_settings_of_the_graph_win_over_the_attempts() -> None:
    given = Sampling(temperature=0.7, max_tokens=100, stop=("x",))
    assert merge(Sampling(), given) == given
    assert merge(Sampling(max_tokens=7), given) == Sampling(
        temperature=0.7, max_tokens=7, stop=("x",)
    )


def test_a_call_is_stamped() -> None:
    model = Asked()
    order = attempt(system="be brief", policy="p1", sampling=Sampling(seed=5, temperature=1.0))

    async def main() -> list[Request]:
        lent = LentModel(model, order, Limits(tokens=100))
        for _ in range(2):
            await lent.complete(Request(messages=(USER,)))
        assert lent.usage.calls == 2 and lent.usage.completion_tokens == 6
        assert len(lent.recorder.trajectory().nodes) == 4  # the second sample is a second branch
        return model.requests

    first, second = asyncio.run(main())
    digest = first.key.removeprefix(f"{order.id}/0-")
    assert digest.isalnum() and second.key == f"{order.id}/1-{digest}"
    assert first.policy == "p1" and first.messages[0].content == "be brief"
    assert first.sampling.temperature == 1.0
    assert first.sampling.seed != second.sampling.seed
    assert (first.sampling.max_tokens, second.sampling.max_tokens) == (100, 97)
    assert asyncio.run(main())[2].sampling.seed == first.sampling.seed


def test_a_resumed_agent_that_asks_something_else_is_not_given_an_earlier_reply() -> None:
    class Kept(dict[str, Completion]):
        def call(self, key: str) -> Completion | None:
            return self.get(key)

        async def add_call(self, key: str, completion: Completion) -> None:
            self[key] = completion

    model, kept = Scripted(lambda request: f"to {request.messages[-1].content}"), Kept()

    async def ask(*texts: str) -> list[str]:
        lent = LentModel(Journaled(model, kept), attempt(), Limits())
        asked = [Request(messages=(Message(role="user", content=text),)) for text in texts]
        return [(await lent.complete(one)).message.content for one in asked]

    assert asyncio.run(ask("one", "two")) == asyncio.run(ask("one", "two")) == ["to one", "to two"]
    assert model.calls == 2
    assert asyncio.run(ask("two", "one")) == ["to two", "to one"]  # side by side, in another order


def test_samples_of_one_task_get_different_seeds_and_no_seed_stays_none() -> None:
    model = Asked()

    async def main() -> None:
        for sample in (0, 1):
            await LentModel(model, attempt(sample=sample), Limits()).complete(
                Request(messages=(USER,))
            )
        await LentModel(model, attempt(sampling=Sampling()), Limits()).complete(
            Request(messages=(USER,))
        )

    asyncio.run(main())
    seeds = [request.sampling.seed for request in model.requests]
    assert seeds[0] != seeds[1] and seeds[2] is None


@pytest.mark.parametrize(
    ("limits", "reason", "calls"),
    [
        (Limits(turns=2), "turn_limit", 2),
        (Limits(tokens=4), "token_limit", 2),
        (Limits(seconds=0.0), "time_limit", 0),
        (Limits(usd=0.0), "budget", 0),
    ],
)
def test_limits_stop_before_the_next_call(limits: Limits, reason: str, calls: int) -> None:
    model = Asked()

    async def main() -> None:
        lent = LentModel(model, attempt(), limits)
        for _ in range(5):
            await lent.complete(Request(messages=(USER,)))

    with pytest.raises(LimitReached) as caught:
        asyncio.run(main())
    assert caught.value.reason == reason and len(model.requests) == calls


def test_a_spent_budget_is_final() -> None:
    class Spent:
        async def complete(self, request: Request) -> Completion:
            raise BudgetReached("spent")

    async def main() -> None:
        lent = LentModel(Spent(), attempt(), Limits())
        for _ in range(2):
            with pytest.raises(BudgetReached):
                await lent.complete(Request(messages=(USER,)))

    asyncio.run(main())


def test_closing_cancels_what_is_in_flight_and_refuses_more() -> None:
    ended: list[str] = []

    class Slow:
        async def complete(self, request: Request) -> Completion:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("ended")
            raise AssertionError

    async def main() -> None:
        lent = LentModel(Slow(), attempt(), Limits())
        thread = asyncio.create_task(
            asyncio.to_thread(lent.complete_from_thread, Request(messages=(USER,)))
        )
        await asyncio.sleep(0.05)
        await lent.close()
        with pytest.raises(BaseException) as caught:
            await thread
        assert "Cancelled" in type(caught.value).__name__
        with pytest.raises(LimitReached):
            await lent.complete(Request(messages=(USER,)))

    started = time.monotonic()
    asyncio.run(main())
    assert ended == ["ended"] and time.monotonic() - started < 5


def test_a_blocking_call_on_the_event_loop_is_refused() -> None:
    async def main() -> None:
        lent = LentModel(Asked(), attempt(), Limits())
        lent.complete_from_thread(Request(messages=(USER,)))

    with pytest.raises(UsageError, match="ainvoke"):
        asyncio.run(main())
