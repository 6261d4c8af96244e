"""Without consent nothing of a conversation is on the disk; with it all of it is in the log."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from live_fixtures import TOOL, YAML, Live, live, said

PLANTED = "zebrafish-7731"


def on_disk(folder: Path) -> list[str]:
    """Files below `folder` that hold the planted text, however they are compressed."""
    import zstandard

    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        frames = [data]
        for at in range(len(data)):  # the log's bodies are frames within its file
            if data.startswith(zstandard.FRAME_HEADER, at):
                try:
                    frames.append(
                        zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
                    )
                except zstandard.ZstdError:
                    continue
        if any(PLANTED.encode() in frame for frame in frames):
            found.append(path.name)
    return found


def texts(one: Live) -> bool:
    """Whether the planted text is in any row of the log, decoded."""
    return any(PLANTED in str(entry) for entry in one.archive.read())


async def talk(one: Live, **asked: Any) -> None:
    """Everything that a client can do: an answer, an error, tools, a session, a stream."""
    messages = said(f"echo {PLANTED}")  # in the reply too: a journal would keep that alone
    async with one.client() as sdk, one.client("me") as session:
        for options in ({}, {"stream": True}, {"tools": [TOOL]}):
            await sdk.chat.completions.create(model="x", messages=messages, **options, **asked)
        call = said(f"call {PLANTED}")
        await sdk.chat.completions.create(model="x", messages=call, tools=[TOOL], **asked)
        await session.chat.completions.create(model="x", messages=messages, **asked)


CASES = [
    ("", {}, False),
    ("", {"store": True}, True),
    ("", {"store": False}, False),
    ("", {"extra_headers": {"x-agentloop-store": "true"}}, True),
    ("", {"extra_headers": {"x-agentloop-store": "True"}, "store": False}, False),
    ("", {"metadata": {"consent": "yes"}}, False),
    ("consent: always", {}, True),
    ("consent: always", {"store": False}, False),
    ("consent: never", {"store": True}, False),
]


@pytest.mark.parametrize(("serve", "asked", "logged"), CASES)
def test_what_was_not_agreed_to_is_nowhere(
    tmp_path: Path, serve: str, asked: dict[str, Any], logged: bool
) -> None:
    yaml = YAML + "cache: true\n"

    async def main() -> bool:
        async with live(tmp_path, serve=serve, yaml=yaml, idle=0.5) as one:
            await talk(one, **asked)
            while one.service._outsiders._open:
                await asyncio.sleep(0.02)
            status, told = await one.send("GET", "/health")
            assert status == 200 and told["logged"] == (5 if logged else 0)
            return texts(one)

    assert asyncio.run(main()) is logged
    assert bool(on_disk(tmp_path / "home")) is logged


def test_consent_is_read_from_every_request(tmp_path: Path) -> None:
    """A turn that does not agree is in no trajectory, also of a conversation that is logged."""

    async def main() -> bool:
        async with live(tmp_path, idle=0.5) as one, one.client() as sdk:
            first = said("call it")
            reply = await sdk.chat.completions.create(
                model="x", messages=first, tools=[TOOL], store=True
            )
            more: Any = [*first, reply.choices[0].message]
            for text, store in ((PLANTED, False), ("fine", True)):
                await sdk.chat.completions.create(
                    model="x", messages=[*more, *said(text)], tools=[TOOL], store=store
                )
            [one_call, other] = await one.episodes(2)
            assert (one_call.usage.calls, other.usage.calls) == (1, 1)
            return texts(one)

    assert asyncio.run(main()) is False


def test_a_client_that_goes_away_is_logged_only_with_consent(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            asked, slow = asyncio.Event(), one.bench.model.complete

            async def hang(request: Any) -> Any:
                if len([m for m in request.messages if m.role != "system"]) > 1:
                    asked.set()
                    await asyncio.sleep(60)
                return await slow(request)

            one.bench.model.complete = hang  # type: ignore[method-assign]
            for store in (True, False):
                asked.clear()
                call = asyncio.create_task(
                    sdk.chat.completions.create(
                        model="x", messages=said("compute 1+1"), store=store
                    )
                )
                await asyncio.wait_for(asked.wait(), 10)
                call.cancel()
            [episode] = await one.episodes(1)
            assert episode.failure is not None and episode.failure.reason == "cancelled"
            await asyncio.sleep(0.3)
            assert len(await one.episodes(1)) == 1

    asyncio.run(main())


def test_a_fault_of_ours_does_not_quote_a_conversation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test's logging configuration may have switched it off.
    monkeypatch.setattr(logging.getLogger("agentloop.gateway.http"), "disabled", False)

    async def main() -> None:
        async with live(tmp_path) as one:

            def quotes(*_: Any) -> None:
                raise KeyError(f"unexpected {PLANTED}")

            one.service._conversations.find = quotes  # type: ignore[method-assign,assignment]
            body = {"messages": said(PLANTED)}
            status, told = await one.send("POST", "/v1/chat/completions", body)
            assert status == 500 and PLANTED not in str(told)

    asyncio.run(main())
    assert "KeyError" in caplog.text and "in quotes" in caplog.text
    assert f"unexpected {PLANTED}" not in caplog.text
