"""Promotions and rollbacks while clients call: nothing fails, and every reply is of one bundle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from live_fixtures import TOOL, Live, ModelServer, live, said, text_of

from agentloop.errors import ServerError
from agentloop.live import lineup, watches


async def champion_is(one: Live, bundle: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while one.service.health()["champion"] != bundle:
        assert time.monotonic() < deadline, one.service.health()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("swaps", "requests"), [(5, 250), pytest.param(20, 1000, marks=pytest.mark.slow)]
)
def test_swaps_under_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: int, requests: int
) -> None:
    monkeypatch.setattr(watches, "LOOK", 0.02)
    server = ModelServer()
    seen: Counter[str] = Counter()

    async def main() -> None:
        async with live(tmp_path, server=server, idle=0.1) as one:
            policies = [one.policy(f"{at:064x}") for at in range(swaps + 1)]
            bundles = [one.bundle(at, policies[at]) for at in range(swaps + 1)]
            known = {bundle: f"MARK-{at} {policies[at]}" for at, bundle in enumerate(bundles)}
            one.promote(bundles[0])
            await champion_is(one, bundles[0])
            left = iter(range(requests))

            complete = one.bench.model.complete

            async def served(request: Any) -> Any:
                assert request.policy in server.loaded, "a policy that is not served was asked"
                await asyncio.sleep(0.002)
                assert request.policy in server.loaded, "unloaded under a request"
                return await complete(request)

            one.bench.model.complete = served  # type: ignore[method-assign]

            async def client() -> None:
                for at in left:
                    options: Any = {"tools": [TOOL]} if at % 3 == 0 else {}
                    text = "compute 1+1" if at % 3 == 1 else "hi"
                    reply = await one.ask(said(text), store=at % 2 == 0, **options)
                    content, bundle = text_of(reply), reply["system_fingerprint"]
                    assert content.removeprefix("Answer: ").startswith(known[bundle] + " ")
                    assert content.count("MARK-") == 1
                    seen[bundle] += 1

            async def swap() -> None:
                for at, bundle in enumerate(bundles[1:], 1):
                    while sum(seen.values()) < 0.7 * at * requests / swaps:
                        await asyncio.sleep(0.005)
                    one.promote(bundle)
                    await champion_is(one, bundle)

            await asyncio.gather(swap(), *(client() for _ in range(16)))
            health = one.service.health()
            assert health["failed"] == 0 and health["requests"] == requests
            assert sum(seen.values()) == requests and len(seen) == swaps + 1
            while server.loaded != {policies[-1]}:  # old ones are let go of
                await asyncio.sleep(0.02)
            assert Counter(what for what, _ in server.orders) == {
                "load": swaps + 1, "unload": swaps,
            }  # fmt: skip

    asyncio.run(main())


def test_a_rollback_of_another_process_is_followed_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            first, second = str(one.service.health()["champion"]), one.bundle(1)
            one.promote(second)
            await champion_is(one, second)
            command = [
                sys.executable, "-m", "agentloop", "rollback", str(tmp_path / "workflows" / "tiny"),
                "--home", str(tmp_path / "home"),
            ]  # fmt: skip
            done = asyncio.create_task(asyncio.to_thread(subprocess.run, command, check=True))
            while not done.done():
                await asyncio.sleep(0.05)
            await done
            began = last = time.monotonic()
            for _ in range(60):
                reply = await one.ask(said("hi"))
                if reply["system_fingerprint"] == second:
                    last = time.monotonic()
                await asyncio.sleep(0.02)
            assert reply["system_fingerprint"] == first and last - began <= 5

    asyncio.run(main())


def test_a_conversation_ends_under_the_bundle_that_it_began_with(tmp_path: Path) -> None:
    server = ModelServer()

    async def main() -> None:
        async with live(tmp_path, server=server, idle=1) as one, one.client() as sdk:
            policies = [one.policy(letter * 64) for letter in "ab"]
            old, new = one.bundle(1, policies[0]), one.bundle(2, policies[1])
            one.promote(old)
            await champion_is(one, old)
            ask = sdk.chat.completions.create
            chat, agent = said("hi"), said("call it")
            first = await ask(model="x", messages=chat)
            call = await ask(model="x", messages=agent, tools=[TOOL])
            one.promote(new)
            await champion_is(one, new)
            chat += [
                {"role": "assistant", "content": first.choices[0].message.content}, *said("on"),
            ]  # fmt: skip
            agent += [
                call.choices[0].message,
                {"role": "tool", "tool_call_id": "call_0", "content": "4"},
            ]
            again = await ask(model="x", messages=chat)
            end = await ask(model="x", messages=agent, tools=[TOOL])
            assert {again.system_fingerprint, end.system_fingerprint} == {old}
            assert (await ask(model="x", messages=said("hi"))).system_fingerprint == new
            assert server.loaded == set(policies)
            while server.loaded != {policies[1]}:  # both have been silent for a second
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_bundle_that_cannot_be_loaded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "_AGAIN", 0.2)
    broken = True

    def load(name: str) -> None:
        if broken and name == bad:
            raise ServerError("the adapter is damaged")

    bad = ""

    async def main() -> None:
        nonlocal bad, broken
        async with live(tmp_path, server=ModelServer(load)) as one, one.client() as sdk:
            first = str(one.service.health()["champion"])
            bad = one.policy("c" * 64)
            bundle = one.bundle(1, bad)
            one.promote(bundle)
            while one.service.health()["status"] != "degraded":
                await asyncio.sleep(0.02)
            await asyncio.sleep(1)
            [line] = [line for line in one.lines if "damaged" in line]
            assert bundle in line and f"{first} goes on serving" in line
            reply = await sdk.chat.completions.create(model="x", messages=said("hi"))
            assert reply.system_fingerprint == first
            broken = False  # mended: it is tried again
            await champion_is(one, bundle)
            assert one.service.health()["status"] == "ok"

    asyncio.run(main())


def test_a_canary_is_over_even_when_the_next_cannot_be_loaded(tmp_path: Path) -> None:
    def load(name: str) -> None:
        if name == bad:
            raise ServerError("the adapter is damaged")

    bad = ""

    async def main() -> None:
        nonlocal bad
        async with live(tmp_path, server=ModelServer(load)) as one:
            first, bad = one.bundle(1), one.policy("c" * 64)
            for bundle, status, serving in (
                (first, "ok", first), (one.bundle(2, bad), "degraded", None), (first, "ok", first),
            ):  # fmt: skip
                one.promote(bundle, "canary")
                while True:
                    health = one.service.health()
                    if (health["status"], health["canary"]) == (status, serving):
                        break
                    await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_policy_that_could_not_be_unloaded_is_let_go_of_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "LOOK", 0.02)
    stuck = True

    class Stuck(ModelServer):
        async def unload_policy(self, name: str) -> None:
            if stuck:
                raise ServerError("the model server does not answer")
            await super().unload_policy(name)

    async def main() -> None:
        nonlocal stuck
        server = Stuck()
        async with live(tmp_path, server=server) as one:
            policies = [one.policy(letter * 64) for letter in "abc"]
            for number, policy in enumerate(policies):
                one.promote(one.bundle(number, policy))
                await champion_is(one, str(one.archive.alias("tiny/champion").bundle))  # type: ignore[union-attr]
            assert server.loaded == set(policies)
            stuck = False
            while server.loaded != {policies[-1]}:
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_champion_that_cannot_be_loaded_is_told_at_the_start(tmp_path: Path) -> None:
    def load(name: str) -> None:
        raise ServerError("the adapter is damaged")

    async def main() -> None:
        async with live(tmp_path) as one:
            one.promote(one.bundle(1, one.policy("d" * 64)))
        with pytest.raises(ServerError, match="damaged"):
            async with live(tmp_path, server=ModelServer(load)):
                pass

    asyncio.run(main())
