"""Late rewards: attached to what was logged, again and again, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from live_fixtures import TOOL, live, said

from agentloop.live import kept
from agentloop.live.signals import FEEDBACK, LIVE
from agentloop.records import Episode, Score
from agentloop.store.query import Query

GRADER = """\

def grade(answer, task):
    return 0.25
"""


def test_feedback_is_a_score_of_the_episode_also_days_later(tmp_path: Path) -> None:
    async def first() -> str:
        async with live(tmp_path) as one, one.client() as sdk:
            reply = await sdk.chat.completions.create(model="x", messages=said("hi"), store=True)
            for score in (1, 0.5):
                body = {"id": reply.id, "score": score, "comment": "so so"}
                status, told = await one.send("POST", "/feedback", body)
                assert (status, told["score"]) == (200, score)
            [episode] = one.archive.episodes(Query(purpose="serve", success=False))
            assert told["episode"] == episode.id
            assert episode.score is not None and episode.score.value == 0.5
            assert (episode.score.source, episode.score.feedback) == (FEEDBACK, "so so")
            return reply.id

    async def later(reply: str) -> None:
        async with live(tmp_path) as one:  # another process, another day
            for name in (reply, reply.removeprefix("chatcmpl-")):
                assert (await one.send("POST", "/feedback", {"id": name, "score": 1}))[0] == 200
            [episode] = one.archive.episodes(Query(purpose="serve", success=True))
            assert episode.id in reply
            rows = [e.body for e in one.archive.read(Query(kinds=("score",)))]
            values = [row["score"]["value"] for row in rows]  # type: ignore[index,call-overload]
            assert values == [1, 0.5, 1], "appended, never changed; the same twice is once"

    reply = asyncio.run(first())
    asyncio.run(later(reply))


def test_feedback_finds_a_trajectory_that_is_still_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path, idle=1) as one, one.client() as sdk:
            reply = await sdk.chat.completions.create(
                model="x", messages=said("call it"), tools=[TOOL], store=True
            )
            assert not one.archive.episodes(Query(purpose="serve"))
            status, told = await one.send("POST", "/feedback", {"id": reply.id, "score": 1})
            assert status == 200
            [episode] = await one.episodes(1)
            assert episode.id == told["episode"] and episode.success

    asyncio.run(main())


def test_what_is_no_feedback_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            unlogged = await sdk.chat.completions.create(model="x", messages=said("hi"))
            kept = await sdk.chat.completions.create(model="x", messages=said("hi"), store=True)
            for name in (unlogged.id, "chatcmpl-ep-0123456789abcdef", "ep-", "", "%"):
                status, told = await one.send("POST", "/feedback", {"id": name, "score": 1})
                assert status == 404 and "no conversation was logged" in told["error"]["message"]
            for body in (
                {"id": kept.id}, {"id": kept.id, "score": 1.01}, {"id": kept.id, "score": -1},
                {"id": kept.id, "score": True}, {"id": kept.id, "score": "1"}, {"score": 1}, [], 1,
                {"id": kept.id, "score": 1, "why": "?"}, {"id": kept.id, "score": 1, "comment": 3},
            ):  # fmt: skip
                assert (await one.send("POST", "/feedback", body))[0] == 400, body
            assert not list(one.archive.read(Query(kinds=("score",))))

    asyncio.run(main())


def test_an_episode_of_another_kind_gets_no_feedback(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            await sdk.chat.completions.create(model="x", messages=said("hi"), store=True)
            [episode] = one.archive.episodes(Query(purpose="serve"))
            from dataclasses import replace

            other = replace(episode, id="ep-00000000000000aa", purpose="eval")
            foreign = replace(episode, id="ep-00000000000000bb")
            await one.archive.add_episodes([other], scope="tiny")
            await one.archive.add_episodes([foreign], scope="another")
            for name in (other.id, foreign.id):
                assert (await one.send("POST", "/feedback", {"id": name, "score": 1}))[0] == 404

    asyncio.run(main())


def test_the_workflows_live_reward_scores_what_was_logged(tmp_path: Path) -> None:
    serve = 'reward: {use: "agentloop.rewards.function:Function", grade: ./live.py:grade}'
    folder = tmp_path / "workflows" / "tiny"

    async def main() -> None:
        async with live(tmp_path, serve=serve) as one, one.client() as sdk:
            (folder / "live.py").write_text(GRADER)
            for store in (True, False):
                await sdk.chat.completions.create(model="x", messages=said("hi"), store=store)
            while not (rows := list(one.archive.read(Query(kinds=("score",))))):
                await asyncio.sleep(0.02)
            [row] = rows
            assert row.body["spec"] == LIVE and row.body["score"]["value"] == 0.25  # type: ignore[index,call-overload]
            (folder / "live.py").write_text(GRADER.replace("0.25", "7"))
            await sdk.chat.completions.create(model="x", messages=said("ho"), store=True)
            while not any("no score" in line for line in one.lines):
                await asyncio.sleep(0.02)
            assert len(list(one.archive.read(Query(kinds=("score",))))) == 1

    asyncio.run(main())


def test_a_live_reward_that_is_cut_off_by_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "ENDING", 0.2)

    class Slow:
        async def score(self, episodes: Sequence[Episode]) -> list[Score]:
            await asyncio.sleep(60)
            return []

    async def main() -> list[str]:
        async with live(tmp_path) as one:
            one.service._kept._reward = Slow()
            await one.ask(said("hi"), store=True)
        return one.lines

    [line] = asyncio.run(main())
    assert "no score: the server stops" in line
