"""A loopback server that misbehaves on purpose, byte by byte, as no HTTP library lets one do.

    async with FaultServer(script) as server: ...   # server.base_url, server.calls

`script` is called with the number of each completion asked for, from 0, and returns a `Play`: a
coroutine that writes whatever it likes to the connection. Everything asked for is counted.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fake_endpoint import chat

Play = Callable[["Wire"], Awaitable[None]]
Script = Callable[[int], Play]
JSON = {"Content-Type": "application/json"}


class Hangup(Exception):
    """The connection is to be closed."""


class Wire:
    """One request's connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        """Exactly these bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def send(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] = JSON,
        *, length: int | None = None,
    ) -> None:  # fmt: skip
        """A response; `length` is what its header says, when that is not the truth."""
        said = {"Content-Length": str(len(body) if length is None else length), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        await self.raw(f"HTTP/1.1 {status} Fault\r\n{lines}\r\n".encode("latin-1") + body)

    async def chunked(self, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> None:
        """A response in chunks, ended by `end`."""
        await self.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for chunk in chunks:
            await self.raw(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        await self.raw(end)

    def close(self) -> None:
        """End the connection properly, here."""
        raise Hangup

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        raise Hangup

    async def hang(self) -> None:
        """Say nothing more."""
        await asyncio.sleep(3600)


async def fine(wire: Wire) -> None:
    """A proper reply of 7 and 3 tokens."""
    await wire.send(200, json.dumps(chat("fine", usage=(7, 3))).encode())


class FaultServer:
    """Counts the completions asked for, and keeps every `Authorization` it saw."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.calls = 0
        self.keys: list[str] = []
        self.base_url = ""
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> FaultServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = dict(self._open)
        for task, writer in tasks.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.001)  # the sockets are closed in the loop's next rounds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while True:
                await self._read(reader)
                number, self.calls = self.calls, self.calls + 1
                await self._script(number)(Wire(writer))
        except (Hangup, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client or the script ended it
        finally:
            del self._open[task]
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = [line.partition(":") for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in lines}
        self.keys.append(headers.get("authorization", ""))
        await reader.readexactly(int(headers.get("content-length", 0)))
