"""A canary from its start to its end: who gets it, what its rewards do, what is written down."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow
from live_fixtures import live, said, text_of

from agentloop.cli import run
from agentloop.errors import StoreError, UsageError
from agentloop.gates.live import judge
from agentloop.records import Episode, Score
from agentloop.store.archive import Archive
from agentloop.store.log import Log
from agentloop.store.query import Query
from agentloop.workflows import canary, watches
from agentloop.workflows.canary import FEEDBACK, LIVE, signals
from agentloop.workflows.schema import Serve


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about")


def test_a_share_of_conversations_goes_to_the_canary_and_stays_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path, serve="canary: 0.3") as one:
            bundle = one.bundle(1)
            canary.begin(one.archive, "tiny", bundle, reason="test")
            await until(lambda: one.service.health()["canary"] == bundle)
            got = [(await one.ask(said("hi")))["system_fingerprint"] == bundle for _ in range(200)]
            assert 35 <= sum(got) <= 85  # 0.3 of 200, within four deviations
            for name in "abcdefgh":
                replies = [await one.ask(said("hi"), conversation=name) for _ in range(3)]
                assert len({reply["system_fingerprint"] for reply in replies}) == 1
            choose = one.service._lineup.choose  # also once it was forgotten, or at another start
            for at in range(20):
                assert len({choose(f"conversation {at}").bundle for _ in range(5)}) == 1
            for _ in range(10):  # and without a name, as what it reads like
                messages, prints = said("hi"), set()
                for _ in range(3):
                    reply = await one.ask(messages)
                    prints.add(reply["system_fingerprint"])
                    messages += [
                        {"role": "assistant", "content": text_of(reply)}, *said("more")
                    ]  # fmt: skip
                assert len(prints) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("good", "served"), [("canary", 1), ("champion", 0)])
def test_feedback_promotes_or_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str, served: int
) -> None:
    monkeypatch.setattr(watches, "JUDGE", 0.1)

    async def main() -> None:
        async with live(tmp_path, serve="canary: 0.5") as one:
            bundles = [str(one.service.health()["champion"]), one.bundle(1)]
            canary.begin(one.archive, "tiny", bundles[1], reason="test")
            await until(lambda: one.service.health()["canary"] == bundles[1])
            for _ in range(200):
                if one.service.health()["canary"] is None:
                    break
                reply = await one.ask(said("hi"), store=True)
                score = (reply["system_fingerprint"] == bundles[1]) == (good == "canary")
                await one.send("POST", "/feedback", {"id": reply["id"], "score": int(score)})
            await until(lambda: one.service.health()["canary"] is None)
            health = one.service.health()
            assert health["champion"] == bundles[served]
            assert text_of(await one.ask(said("hi"))) == f"MARK-{served} base turn 1"
            [decision] = canary.decisions(one.archive, "tiny")
            assert decision["action"] == ("promote" if served else "roll back")
            assert (decision["canary"], decision["champion"]) == (bundles[1], bundles[0])
            raw = decision["differences"]
            assert len(raw) == decision["pairs"] and abs(sum(raw)) == len(raw)
            assert max(decision["gain"], decision["harm"]) >= 20
            assert any(line.startswith("canary: ") for line in one.lines)

    asyncio.run(main())


async def write(
    archive: Archive, bundle: str, value: float, *, spec: str = FEEDBACK, at: float | None = None,
    name: str = "",
) -> None:  # fmt: skip
    """A live conversation and its signal, without a server."""
    number = len(archive.log.keys("episode"))
    [seen] = archive.episodes(Query(purpose="serve", limit=1))
    episode: Episode = replace(seen, id=name or f"ep-{number:016x}", bundle=bundle, score=None)
    await archive.add_episodes([episode], scope="tiny")
    score = Score(value=value, success=value >= 1, source=spec)
    real = Log.append_async

    async def dated(log: Log, drafts: Any, **more: Any) -> Any:
        return await real(log, [replace(draft, at=at) for draft in drafts], **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "append_async", dated)
        await archive.add_scores([(episode.id, score)], spec, scope="tiny")


def test_a_conversation_counts_once_with_what_settled_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            await one.ask(said("hi"), store=True)
            old, new = str(one.service.health()["champion"]), one.bundle(1)
            await write(one.archive, new, 1.0)  # before it was the canary
            canary.begin(one.archive, "tiny", new, reason="test")
            found = canary.running(one.archive, "tiny")
            assert found is not None and (found.bundle, found.champion) == (new, old)
            archive = one.archive
            await write(archive, old, 0.1, at=10.0)
            await write(archive, old, 0.9, at=99.0, name="ep-00000000000000a0")
            await write(archive, old, 0.2, at=500.0, name="ep-00000000000000a0")  # too late
            await write(archive, new, 0.3, spec=LIVE, at=20.0, name="ep-00000000000000b0")
            await write(archive, new, 0.4, at=50.0, name="ep-00000000000000b0")  # in time
            await write(archive, new, 0.5, spec=LIVE, at=30.0)  # nobody says anything
            await write(archive, one.bundle(2), 0.6, at=40.0)  # of neither
            await write(archive, old, 0.7, spec="another", at=40.0)
            seen = signals(archive, "tiny", found, 100.0, now=129.0)
            assert seen == [("champion", 0.1), ("canary", 0.4), ("champion", 0.9)]
            seen = signals(archive, "tiny", found, 100.0, now=600.0)
            assert seen == [
                ("champion", 0.1), ("canary", 0.4), ("champion", 0.9), ("canary", 0.5)
            ]  # fmt: skip

    asyncio.run(main())


def test_an_action_is_about_the_bundles_that_were_judged(tmp_path: Path) -> None:
    """A stale watcher, a lost race and a crash half-way change nothing that they should not."""

    async def main() -> None:
        async with live(tmp_path) as one:
            archive, alias = one.archive, "tiny/champion"
            new, other = one.bundle(1), one.bundle(2)
            canary.begin(archive, "tiny", new, reason="test")
            found = canary.running(archive, "tiny")
            assert found is not None
            good = judge([("champion", 0.0), ("canary", 1.0)] * 20)
            assert good.action == "promote"
            one.promote(other)  # by hand, meanwhile
            canary.act(archive, "tiny", found, good)
            assert archive.alias(alias).bundle == other  # type: ignore[union-attr]
            assert not canary.decisions(archive, "tiny")
            found = canary.running(archive, "tiny")
            assert found is not None and found.champion == other
            token = archive.log.lease("canary/tiny", "somebody", 60)
            with pytest.raises(StoreError, match="held by somebody"):
                canary.act(archive, "tiny", found, good)
            archive.log.release("canary/tiny", token)
            retire = archive.retire
            archive.retire = lambda *a, **k: (_ for _ in ()).throw(StoreError("power cut"))  # type: ignore[method-assign]
            with pytest.raises(StoreError, match="power cut"):
                canary.act(archive, "tiny", found, good)
            archive.retire = retire  # type: ignore[method-assign]
            assert archive.alias(alias).bundle == new  # type: ignore[union-attr]
            assert canary.running(archive, "tiny") is None
            assert canary.decide(archive, "tiny", Serve()) is None
            assert len(canary.decisions(archive, "tiny")) == 1

    asyncio.run(main())


def test_the_command_begins_shows_and_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> tuple[str, str]:
        async with live(tmp_path) as one:
            return one.bundle(1), str(one.service.health()["champion"])

    bundle, champion = asyncio.run(main())
    workflow, home = str(tmp_path / "workflows" / "tiny"), str(tmp_path / "home")

    def told(*words: str) -> Any:
        assert run(["canary", workflow, *words, "--home", home, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert told()["canary"] is None
    assert told(bundle[:14], "--dry-run") == {"workflow": "tiny", "bundle": bundle, "done": False}
    assert told()["canary"] is None
    assert told(bundle[:14])["done"] is True
    shown = told()["canary"]
    assert (shown["bundle"], shown["action"], shown["pairs"]) == (bundle, "keep", 0)
    assert run(["canary", workflow, "--home", home]) == 0
    assert "is the canary of tiny" in capsys.readouterr().out
    assert run(["inspect", "bundles", "--home", home, "--json"]) == 0
    serving_as = {one["id"]: one["alias"] for one in json.loads(capsys.readouterr().out)}
    assert serving_as == {champion: "tiny/champion", bundle: "tiny/canary"}
    assert told("--end", "--dry-run")["done"] is False
    assert told("--end") == {"workflow": "tiny", "bundle": bundle, "done": True}
    assert told()["canary"] is None
    for words, why in (
        (["--end"], "has no canary"), ([champion], "is the champion"), (["nothing"], "unknown"),
        ([bundle, "--end"], "not both"),
    ):  # fmt: skip
        assert run(["canary", workflow, *words, "--home", home]) == 2
        assert why in capsys.readouterr().err
    with Archive(Path(home)) as archive:
        history = archive.alias_history("tiny/canary")
        assert [one.over for one in history] == [False, True]
        with pytest.raises(UsageError, match="nothing to end"):
            archive.retire("tiny/canary", reason="again")


def test_a_cycles_promotion_goes_to_the_canary_first_if_the_workflow_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow, home = str(tiny_workflow.make(tmp_path)), str(tmp_path / "home")
    options = ["--home", home, "--json", "--set", "serve.promote=canary"]
    assert run(["cycle", workflow, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["state"] == "promoted"
    with Archive(Path(home)) as archive:
        found = canary.running(archive, "tiny")
        assert found is not None and found.bundle == report["bundle"] != found.champion
        assert len(archive.alias_history("tiny/champion")) == 1
