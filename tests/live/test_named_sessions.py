"""Sessions that a client names in the path: an agent of one's own, an episode each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow
from live_fixtures import Live, live, said

from agentloop.datasets.rows import sft_rows
from agentloop.errors import StoreError
from agentloop.live import outside
from agentloop.store.archive import Archive
from agentloop.store.query import Query

ASK = {"messages": said("Multiply 11 by 61.")}


@asynccontextmanager
async def desk(root: Path, *, more: str = "", **options: Any) -> AsyncIterator[Live]:
    """The tiny workflow, every session logged."""
    yaml = tiny_workflow.YAML + more
    async with live(
        root, serve="consent: always", yaml=yaml, parts=tiny_workflow.PARTS, **options
    ) as one:
        yield one


async def ask(one: Live, name: str, body: Any = ASK) -> tuple[int, Any]:
    return await one.send("POST", f"/r/{name}/v1/chat/completions", body)


async def end(one: Live, name: str, body: Any = None) -> tuple[int, Any]:
    return await one.send("DELETE", f"/r/{name}", body)


def test_a_session_gets_the_bundle_and_is_logged_with_the_clients_score(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            status, body = await ask(one, "me")
            assert status == 200 and body["choices"][0]["message"]["content"] == "Answer: 42"
            status, told = await end(one, "me", {"score": 1})
            assert status == 200 and told["calls"] == 1 and told["failure"] is None
            assert told["answer"] == "42" and told["logged"] is True
            [episode] = one.archive.episodes(Query(purpose="serve"))
            assert episode.id == told["episode"] and episode.run == one.bench.run
            assert episode.task.prompt == "Multiply 11 by 61."
            assert episode.score is not None and episode.score.value == 1.0 and episode.success
            [trajectory] = episode.trajectories
            assert trajectory.nodes[0].message.content == "Solve the task."
            assert len(sft_rows([episode], system="Solve the task.")) == 1
            assert (await end(one, "me"))[0] == 404

    asyncio.run(main())


def test_a_session_that_did_not_agree_is_not_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            await ask(one, "me", {**ASK, "store": False})
            status, told = await end(one, "me", {"score": 1})
            assert status == 200 and told["logged"] is False
            assert not list(one.archive.read(Query(kinds=("episode", "score"))))

    asyncio.run(main())


def test_names_are_sessions_of_their_own_and_can_be_used_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            answers = await asyncio.gather(*(ask(one, name) for name in ("a", "a", "b", "b", "a")))
            assert [status for status, _ in answers] == [200] * 5
            assert (await end(one, "a"))[1]["calls"] == 3
            assert (await ask(one, "a"))[0] == 200
            for bad in ({"score": 2}, {"score": "good"}, ["x"]):
                assert (await end(one, "a", bad))[0] == 400
            assert (await end(one, "a"))[1]["calls"] == 1
            assert (await end(one, "b"))[1]["calls"] == 2
            episodes = one.archive.episodes(Query(purpose="serve"))
            assert len({episode.id for episode in episodes}) == 3
            assert all(episode.score is None for episode in episodes)

    asyncio.run(main())


def test_silence_a_limit_and_the_servers_end_all_log_the_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path, idle=0.3) as one:
            ended = one.ended
            await ask(one, "silent")
            for _ in range(100):
                if ended:
                    break
                await asyncio.sleep(0.02)
            assert [(name, e.failure, kept) for name, e, kept in ended] == [("silent", None, True)]
            statuses = [(await ask(one, "greedy"))[0] for _ in range(5)]
            assert statuses == [200, 200, 200, 200, 429]  # limits: {turns: 4}
            assert (await end(one, "greedy"))[1]["failure"] == "turn_limit"
            await ask(one, "left open")
            del ended[:]
        assert [name for name, _, _ in ended] == ["left open"]

    asyncio.run(main())
    with Archive(tmp_path / "home") as archive:
        assert len(archive.episodes(Query(purpose="serve"))) == 3


def test_a_spent_budget_is_told_and_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path, more="budget: {tokens: 1}\n") as one:
            status, body = await ask(one, "me")
            while status == 200:
                status, body = await ask(one, "me")
            assert status == 429 and body["error"]["code"] == "insufficient_quota"
            assert (await end(one, "me"))[1]["failure"] == "budget"
            status, body = await ask(one, "another")
            assert status == 429 and body["error"]["code"] == "insufficient_quota"
            status, body = await one.send("POST", "/v1/chat/completions", ASK)
            assert status == 429 and body["error"]["code"] == "insufficient_quota"

    asyncio.run(main())


def test_no_more_sessions_than_the_budget_has_rollouts(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path, more="budget: {rollouts: 2}\n") as one:
            assert (await ask(one, "a"))[0] == 200
            await end(one, "a")
            assert (await ask(one, "b"))[0] == 200
            status, body = await ask(one, "c")
            assert (status, body["error"]["code"]) == (429, "insufficient_quota")
            assert (await ask(one, "b"))[0] == 200  # one that has begun goes on
            await end(one, "b")
            assert (await ask(one, "c"))[0] == 429
            assert len(one.archive.episodes(Query(purpose="serve"))) == 2

    asyncio.run(main())


def test_a_name_is_free_while_its_session_is_still_being_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            add = one.archive.add_episodes

            async def slow(*given: Any, **named: Any) -> None:
                await asyncio.sleep(0.3)
                await add(*given, **named)

            one.archive.add_episodes = slow  # type: ignore[method-assign]
            await ask(one, "a")
            ending = asyncio.create_task(end(one, "a"))
            await asyncio.sleep(0.1)
            assert (await ask(one, "a"))[0] == 200
            assert (await ending)[1]["calls"] == 1
            assert (await end(one, "a"))[1]["calls"] == 1
            assert len(one.archive.episodes(Query(purpose="serve"))) == 2

    asyncio.run(main())


def test_a_call_after_silence_begins_another_while_the_first_is_being_logged(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with desk(tmp_path, idle=0.2) as one:
            add = one.archive.add_episodes

            async def slow(*given: Any, **named: Any) -> None:
                await asyncio.sleep(0.6)
                await add(*given, **named)

            one.archive.add_episodes = slow  # type: ignore[method-assign]
            await ask(one, "a")
            await asyncio.sleep(0.5)  # silent since 0.3 s
            assert (await ask(one, "a"))[0] == 200
            assert [e.usage.calls for e in await one.episodes(2)] == [1, 1]

    asyncio.run(main())


def test_only_the_models_time_counts_for_an_agent_that_runs_elsewhere(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML.replace("seconds: 60", "seconds: 1")

    async def main() -> None:
        async with live(
            tmp_path, serve="consent: always", yaml=yaml, parts=tiny_workflow.PARTS, idle=1.5
        ) as one:
            await ask(one, "a")
            await asyncio.sleep(1.2)  # its own tools take their time
            assert (await ask(one, "a"))[0] == 200
            [episode] = await one.episodes(1)
            assert episode.failure is None and episode.usage.calls == 2
            complete = one.bench.model.complete

            async def slow(request: Any) -> Any:
                await asyncio.sleep(0.7)
                return await complete(request)

            one.bench.model.complete = slow  # type: ignore[method-assign]
            assert (await ask(one, "b"))[0] == 200
            assert (await ask(one, "b"))[0] == 410
            episode = (await one.episodes(2))[1]
            assert episode.failure is not None and episode.failure.reason == "time_limit"

    asyncio.run(main())


@pytest.mark.parametrize("failures", [2, 99])
def test_a_full_disk_is_waited_for_and_then_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(outside, "AGAIN", (0.2, 0.2, 0.2))

    async def main() -> None:
        async with desk(tmp_path, idle=0.2) as one:
            add, left = one.archive.add_episodes, failures

            async def full(*given: Any, **named: Any) -> None:
                nonlocal left
                left -= 1
                if left >= 0:
                    raise StoreError("disk full")
                await add(*given, **named)

            one.archive.add_episodes = full  # type: ignore[method-assign]
            await ask(one, "a")
            while one.service.health()["status"] == "ok":
                await asyncio.sleep(0.01)
            assert not one.service.broken.done()
            assert (await ask(one, "b", {**ASK, "store": False}))[0] == 200  # it goes on serving
            [line] = one.lines
            assert "cannot be logged: disk full" in line
            if failures == 99:
                await asyncio.wait((one.service.broken,), timeout=5)
                assert one.service.broken.done()
                return
            [episode] = await one.episodes(1)
            assert episode.usage.calls == 1 and one.service.health()["status"] == "ok"

    if failures == 99:
        with pytest.raises(StoreError, match="disk full"):
            asyncio.run(main())
    else:
        asyncio.run(main())


def test_a_session_that_cannot_be_logged_at_the_end_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:

            async def broken(*given: Any, **named: Any) -> None:
                raise StoreError("disk full")

            await ask(one, "open")
            one.archive.add_episodes = broken  # type: ignore[method-assign]

    with pytest.raises(StoreError, match="disk full"):
        asyncio.run(main())
