"""A canary from its start to its end: who gets it, what its rewards do, what is written down."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow
from live_fixtures import TOOL, live, said, text_of

from agentloop.cli import run
from agentloop.errors import ModelError, StoreError, UsageError
from agentloop.gates.live import judge
from agentloop.live import canary, watches
from agentloop.live.signals import Signals
from agentloop.store.archive import Archive
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
            got = [
                (await one.ask(said(f"hi {at}")))["system_fingerprint"] == bundle
                for at in range(200)
            ]
            assert 35 <= sum(got) <= 85  # 0.3 of 200, within four deviations
            for name in "abcdefgh":
                replies = [await one.ask(said("hi"), conversation=name) for _ in range(3)]
                assert len({reply["system_fingerprint"] for reply in replies}) == 1
            choose = one.service._lineup.choose  # also once it was forgotten, or at another start
            for at in range(20):
                assert len({choose(f"conversation {at}").bundle for _ in range(5)}) == 1

    asyncio.run(main())


def test_conversations_that_read_the_same_keep_their_bundle(tmp_path: Path) -> None:
    """Nobody can tell them apart where both bundles say the same, so they have the same one."""

    async def main() -> None:
        async with live(tmp_path, serve="canary: 0.5") as one:
            bundle = one.bundle(1)
            canary.begin(one.archive, "tiny", bundle, reason="test")
            await until(lambda: one.service.health()["canary"] == bundle)
            served = set()
            for text in (f"echo {letter}" for letter in "abcdefghijkl"):
                talks: list[Any] = [said(text) for _ in range(4)]
                prints: list[set[str]] = [set() for _ in talks]
                for _ in range(3):
                    for messages, seen in zip(talks, prints, strict=True):
                        reply = await one.ask(messages)
                        seen.add(reply["system_fingerprint"])
                        messages += [
                            {"role": "assistant", "content": text_of(reply)}, *said("echo on"),
                        ]  # fmt: skip
                assert all(len(seen) == 1 for seen in prints)
                served |= set().union(*prints)
            assert len(served) == 2
            assert one.service.health()["conversations"] == 48

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
            for at in range(200):
                if one.service.health()["canary"] is None:
                    break
                reply = await one.ask(said(f"hi {at}"), store=True)
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


@pytest.mark.parametrize("asked", [{}, {"tools": [TOOL]}])
def test_a_canary_that_only_fails_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    """Nobody gives feedback for an answer that never came."""
    monkeypatch.setattr(watches, "JUDGE", 0.1)

    async def main() -> None:
        async with live(tmp_path, serve="canary: 0.5", idle=0.2) as one:
            champion, bundle = str(one.service.health()["champion"]), one.bundle(1)
            complete = one.bench.model.complete

            async def broken(request: Any) -> Any:
                if "MARK-1" in request.messages[0].content:
                    raise ModelError("no such adapter", reason="model_error")
                return await complete(request)

            one.bench.model.complete = broken  # type: ignore[method-assign]
            canary.begin(one.archive, "tiny", bundle, reason="test")
            await until(lambda: one.service.health()["canary"] == bundle)
            for at in range(200):
                if one.service.health()["canary"] is None:
                    break
                body = {"messages": said(f"hi {at}"), "store": True, **asked}
                status, reply = await one.send("POST", "/v1/chat/completions", body)
                if status == 200:
                    assert reply["system_fingerprint"] == champion
                    await one.send("POST", "/feedback", {"id": reply["id"], "score": 1})
            await until(lambda: one.service.health()["canary"] is None)
            [decision] = canary.decisions(one.archive, "tiny")
            assert decision["action"] == "roll back" and decision["reason"].startswith("worse")
            assert decision["canary_mean"] == 0 and decision["champion_mean"] == 1

    asyncio.run(main())


def test_a_conversation_from_before_the_canary_does_not_count(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path, serve="canary: 0.5") as one:
            old = said("hi")
            reply = await one.ask(old, store=True)
            bundle = one.bundle(1)
            canary.begin(one.archive, "tiny", bundle, reason="test")
            await until(lambda: one.service.health()["canary"] == bundle)
            old += [{"role": "assistant", "content": text_of(reply)}, *said("more")]
            for messages in (old, said("hi")):
                reply = await one.ask(messages, store=True)
                await one.send("POST", "/feedback", {"id": reply["id"], "score": 1})
            found = canary.running(one.archive, "tiny")
            assert found is not None
            signals = Signals(one.archive, "tiny", 0.0).of(found)
            side = "canary" if reply["system_fingerprint"] == bundle else "champion"
            assert signals == [(side, 1.0)]

    asyncio.run(main())


GOOD = judge([("champion", 0.0), ("canary", 1.0)] * 20)


def test_an_action_is_about_the_bundles_that_were_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale watcher, a lost race and a crash half-way change nothing that they should not."""
    assert GOOD.action == "promote"

    async def main() -> None:
        async with live(tmp_path) as one:
            archive, alias = one.archive, "tiny/champion"
            new, other = one.bundle(1), one.bundle(2)
            canary.begin(archive, "tiny", new, reason="test")
            found = canary.running(archive, "tiny")
            assert found is not None
            one.promote(other)  # by hand, meanwhile
            canary.act(archive, "tiny", found, GOOD)
            assert archive.alias(alias).bundle == other  # type: ignore[union-attr]
            assert not canary.decisions(archive, "tiny")
            found = canary.running(archive, "tiny")
            assert found is not None and found.champion == other
            for fails in range(1, 4):  # a crash after so many writes
                with monkeypatch.context() as patch:
                    patch.setattr(archive.log, "append", failing(archive.log.append, fails))
                    try:
                        canary.act(archive, "tiny", found, GOOD)
                    except StoreError:
                        assert archive.alias(alias).bundle == other  # type: ignore[union-attr]
                        assert canary.running(archive, "tiny") == found
                        assert not canary.decisions(archive, "tiny")
            canary.act(archive, "tiny", found, GOOD)
            assert archive.alias(alias).bundle == new  # type: ignore[union-attr]
            assert archive.alias("tiny/canary") is None
            assert canary.decide(archive, "tiny", Serve()) is None
            assert len(canary.decisions(archive, "tiny")) == 1
            archive.rollback(alias)
            assert canary.running(archive, "tiny") is None

    asyncio.run(main())


def failing(append: Any, at: int) -> Any:
    """As `append`, and a power cut instead of the call of that number."""
    calls = 0

    def cut(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise StoreError("power cut")
        return append(*given, **named)

    return cut


def test_what_a_person_moves_at_this_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            archive, new, other = one.archive, one.bundle(1), one.bundle(2)
            canary.begin(archive, "tiny", new, reason="test")
            found = canary.running(archive, "tiny")
            assert found is not None
            with monkeypatch.context() as patch:
                patch.setattr(canary, "running", lambda *_: found)  # looked just before
                one.promote(other)
                with pytest.raises(StoreError, match="moved by another process"):
                    canary.act(archive, "tiny", found, GOOD)
            assert archive.alias("tiny/champion").bundle == other  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_canary_that_was_promoted_by_hand_is_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            archive, new = one.archive, one.bundle(1)
            canary.begin(archive, "tiny", new, reason="test")
            one.promote(new)
            assert canary.decide(archive, "tiny", Serve()) is None
            assert archive.alias("tiny/canary") is None
            archive.rollback("tiny/champion")
            assert canary.running(archive, "tiny") is None
            assert canary.decide(archive, "tiny", Serve()) is None

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
    assert run(["cycle", workflow, *options, "--again"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["state"] == "kept" and report["bundle"] == found.champion
    assert f"left out: {found.bundle} is the canary" in report["heldout"]["reason"]
    with Archive(Path(home)) as archive:
        assert canary.running(archive, "tiny") == found
