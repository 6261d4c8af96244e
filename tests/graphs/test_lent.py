"""The lent model: system text, sampling, keys, limits; what the wrapped model is asked."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fixtures import attempt

from agentloop.errors import BudgetReached, LimitReached, ModelError, UsageError
from agentloop.graphs.lent import LentModel, merge, with_system
from agentloop.models.journal import Journaled
from agentloop.models.scripted import Scripted
from agentloop.records import (
    Completion,
    Limits,
    Message,
    OwnSampling,
    Request,
    Sampling,
    ToolSpec,
    Usage,
)

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


@given(
    st.fixed_dictionaries({}, optional={
        "temperature": st.sampled_from([0.0, 0.5]), "max_tokens": st.sampled_from([256, 9]),
        "top_p": st.sampled_from([1.0, 0.5]), "top_k": st.sampled_from([0, 3]),
        "stop": st.sampled_from([(), ("y",)]), "seed": st.sampled_from([None, 4]),
    })
)  # fmt: skip
def test_what_an_agent_set_wins_also_where_it_is_the_default(own: dict[str, Any]) -> None:
    given = Sampling(temperature=0.9, max_tokens=32, top_p=0.4, top_k=5, stop=("x",), seed=1)
    merged = merge(OwnSampling.of(**own), given)
    assert type(merged) is Sampling and merged == replace(given, **own)


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


def test_a_call_that_asks_for_other_tools_or_sampling_is_another_one() -> None:
    kept: set[str] = set()

    class Keys:
        async def complete(self, request: Request) -> Completion:
            kept.add(request.key)
            return await Scripted(["x"]).complete(request)

    spec = ToolSpec(name="f", description="d", parameters={"type": "object"})
    asked = [
        {}, {"sampling": Sampling(temperature=0.1)}, {"sampling": OwnSampling.of(max_tokens=7)},
        {"tools": (spec,)}, {"tools": (replace(spec, parameters={}),)}, {"tools": (spec, spec)},
        {"tools": (spec,), "sampling": Sampling(temperature=0.1)},
    ]  # fmt: skip

    async def first(**call: Any) -> None:
        lent = LentModel(Keys(), attempt(), Limits(tokens=50))
        await lent.complete(Request(messages=(USER,), **call))

    for repeat in range(2):
        for call in asked:
            asyncio.run(first(**call))
        assert len(kept) == len(asked), repeat
    asyncio.run(first(sampling=OwnSampling.of(temperature=0.0)))  # as the attempt samples
    assert len(kept) == len(asked)
    assert len({tuple(key.split("-")[:3]) for key in kept}) == 1  # one prompt, one number


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


class Samples:
    """Samples a share of what it may, after a moment; every `faulty`-th call brings no reply."""

    def __init__(self, share: float = 1.0, faulty: int = 0) -> None:
        self.share, self.faulty = share, faulty
        self.allowed: list[int] = []
        self.running = self.most = 0

    async def complete(self, request: Request) -> Completion:
        allowed = request.sampling.max_tokens
        self.allowed.append(allowed)
        self.running += allowed
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.faulty and not len(self.allowed) % self.faulty:
                raise ModelError("down")
        finally:
            self.running -= allowed
        tokens = max(1, int(self.share * allowed))
        return Completion(
            message=Message(role="assistant", content="x"), finish_reason="length", model="m",
            usage=Usage(completion_tokens=tokens, calls=1),
        )  # fmt: skip


def side_by_side(
    model: Samples, limits: Limits, wanted: list[int]
) -> tuple[LentModel, list[Completion | BaseException]]:
    """A call for each number of tokens, all begun at once."""

    async def main() -> tuple[LentModel, list[Completion | BaseException]]:
        lent = LentModel(model, attempt(), limits)
        calls = (
            lent.complete(Request(messages=(USER,), sampling=Sampling(max_tokens=most)))
            for most in wanted
        )
        return lent, await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(main())


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), max_size=12), st.integers(1, 120),
    st.sampled_from([0.01, 0.4, 1.0]), st.sampled_from([0, 2, 3]),
)  # fmt: skip
def test_calls_side_by_side_pass_no_limit_of_tokens(
    wanted: list[int], limit: int, share: float, faulty: int
) -> None:
    model = Samples(share, faulty)
    lent, ended = side_by_side(model, Limits(turns=50, tokens=limit), wanted)
    assert model.most <= limit and lent.usage.completion_tokens <= limit
    assert all(isinstance(one, Completion | LimitReached | ModelError) for one in ended)
    refused = [one for one in ended if isinstance(one, LimitReached)]
    assert all(one.reason == "token_limit" for one in refused)
    assert not refused or lent.usage.completion_tokens == limit  # none was refused too soon
    assert len(model.allowed) + len(refused) == len(wanted)


def test_a_call_that_has_room_does_not_wait_and_one_that_has_not_gets_all_it_wants() -> None:
    model = Samples(share=0.25)
    side_by_side(model, Limits(tokens=100), [40, 40, 40, 40])
    assert model.allowed == [40, 40, 40, 40] and model.most == 80


def test_a_call_that_waits_for_tokens_ends_with_the_rollout() -> None:
    class Slow(Samples):
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(60)
            raise AssertionError

    async def main() -> list[BaseException | Completion]:
        lent = LentModel(Slow(), attempt(), Limits(tokens=100))
        calls = [asyncio.ensure_future(lent.complete(Request(messages=(USER,)))) for _ in range(3)]
        await asyncio.sleep(0.01)
        await lent.close()
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)

    assert {type(one) for one in asyncio.run(main())} == {asyncio.CancelledError}


class Costs(Samples):
    """Each call costs what `prices` has for it in turn; the last one goes on."""

    def __init__(self, *prices: float, faulty: int = 0) -> None:
        super().__init__(faulty=faulty)
        self.prices = prices
        self.at_once = self.now = 0

    async def complete(self, request: Request) -> Completion:
        self.now += 1
        self.at_once = max(self.at_once, self.now)
        at = len(self.allowed)
        try:
            done = await super().complete(request)
        finally:
            self.now -= 1
        usd = self.prices[min(at, len(self.prices) - 1)]
        return replace(done, usage=replace(done.usage, usd=usd))


@settings(deadline=None)
@given(
    st.floats(0.01, 1), st.lists(st.floats(0.1, 1), max_size=20), st.floats(0.5, 12),
    st.sampled_from([0, 2, 3]),
)  # fmt: skip
def test_calls_side_by_side_pass_a_limit_of_dollars_by_the_last_one_at_most(
    unit: float, rest: list[float], limit: float, faulty: int
) -> None:
    prices = [unit * share for share in (1.0, *rest)]  # none is dearer than the first
    model = Costs(*prices, faulty=faulty)
    many = Limits(turns=50, tokens=10**6, usd=limit * unit)
    lent, ended = side_by_side(model, many, [8] * 25)
    assert lent.usage.usd < limit * unit + unit
    refused = [one for one in ended if isinstance(one, LimitReached)]
    assert all(one.reason == "budget" for one in refused)
    assert not refused or lent.usage.usd >= limit * unit  # none was refused too soon
    assert len(model.allowed) + len(refused) == 25


def test_a_limit_of_dollars_lets_calls_run_side_by_side_once_a_cost_is_known() -> None:
    model = Costs(0.25)
    lent, _ = side_by_side(model, Limits(turns=50, tokens=10**6, usd=1.0), [8] * 20)
    assert lent.usage.usd == 1.0 and len(model.allowed) == 4 and model.at_once == 3
    model = Costs(0.25)
    side_by_side(model, Limits(turns=50, tokens=10**6), [8] * 20)
    assert model.at_once == 20


def test_what_a_cached_reply_cost_is_no_guess_at_the_next_one() -> None:
    class Kept(Costs):
        async def complete(self, request: Request) -> Completion:
            done = await super().complete(request)
            return replace(done, cached=not done.usage.usd)

    model = Kept(0.0, 1.0)
    lent, _ = side_by_side(model, Limits(turns=50, tokens=10**6, usd=1.0), [8] * 20)
    assert lent.usage.usd == 1.0 and len(model.allowed) == 2
