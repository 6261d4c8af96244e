"""A chat model behind any URL that speaks OpenAI's format, ours and vLLM's included.

In: `Request`; out: `Completion`, with exact token ids and log-probs where `extensions` are spoken.
The key is sent to the configured host and nowhere else: redirects, proxies and cookies are off.
"""

from __future__ import annotations

import asyncio
import time
from copy import copy
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from agentloop.errors import ModelError, UsageError
from agentloop.models import faults, wire
from agentloop.records import Completion, Request

CONNECT_SECONDS = 5.0


class _Named(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Named] = Field(min_length=1)


class OpenAICompatible:
    """`POST {base_url}/chat/completions`. Raises `UsageError` for a URL or key that cannot work."""

    def __init__(
        self,
        base_url: str,
        api_key: str = "",
        *,
        model: str = "",
        extensions: bool = False,
        native_tools: bool = True,
        timeout: float = 120.0,
    ) -> None:
        """`base_url` ends before `/chat/completions`; an empty `model` is the first of `/models`.
        `timeout` is for a whole call, in seconds. Without `native_tools` no tool is sent."""
        if not _usable(base_url):
            shown = base_url.rpartition("@")[2].partition("?")[0]
            raise UsageError(
                f"`{shown}` is not a base URL; "
                "write http(s)://host[:port]/v1 and put the key in OPENAI_API_KEY"
            )
        if not api_key.strip().isprintable():
            raise UsageError("the API key holds control characters; set it again")
        self.base_url, self.model, self.timeout = base_url.rstrip("/"), model, timeout
        self.extensions, self.native_tools = extensions, native_tools
        self._key = api_key.strip()
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: asyncio.Future[list[str]] | None = None

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `ModelError`."""
        if not self.model and not request.policy:
            self.model = await self._first()
        body = wire.encode(
            request, self.model, extensions=self.extensions, native_tools=self.native_tools
        )
        started = time.monotonic()
        data = await self._send("POST", "/chat/completions", wire.dump(body))
        return wire.decode(
            data, request, self.model, where=self.base_url, seconds=time.monotonic() - started
        )

    async def _first(self) -> str:
        """The name of the first model: calls that begin together ask for it together."""
        asking = self._asking
        if asking is None or asking.done() or asking.get_loop() is not asyncio.get_running_loop():
            asking = self._asking = asyncio.ensure_future(self.models())
            # Also when nobody waits for it any more, or asyncio would complain.
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return (await asyncio.shield(asking))[0]
        except ModelError as error:
            raise copy(error) from error  # each caller counts its own attempts on it

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves, at least one. Raises `ModelError`."""
        try:
            data = await self._send("GET", "/models", None)
            return [model.id for model in _Models.model_validate_json(data).data]
        except ValidationError as error:
            raise ModelError(f"{self.base_url} gave no list of models", retryable=True) from error
        except ModelError as error:
            error.bill = None  # a list is free
            raise

    async def close(self) -> None:
        """Close the connections; idempotent. A later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(self, method: str, path: str, body: bytes | None) -> bytes:
        where = self.base_url
        try:
            async with self._open().request(
                method, self.base_url + path, data=body, allow_redirects=False
            ) as response:
                data = await self._read(response)
                if response.status == 200:
                    return data
                text = data.decode("utf-8", "replace")
                raise faults.from_status(
                    response.status, text, response.headers, where=where, secret=self._key
                )
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            retryable = not isinstance(error, aiohttp.ClientSSLError)
            raise faults.unreachable(where, error, retryable=retryable) from error
        except aiohttp.InvalidURL as error:
            raise faults.unreachable(where, error, retryable=False) from error
        except TimeoutError as error:
            raise faults.timed_out(where, self.timeout) from error
        except aiohttp.ClientError as error:
            raise faults.lost(where, error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        chunks, size = [], 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > faults.MAX_BODY:
                raise faults.oversized(self.base_url)
        return b"".join(chunks)  # of one chunk, as most answers are: not a copy

    def _open(self) -> aiohttp.ClientSession:
        """The session of the running loop, opened on first use."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self.timeout, connect=CONNECT_SECONDS),
                # No limit here: whoever makes the calls limits them, and waiting for a free
                # connection would be taken for a slow one.
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._loop = loop
        return self._session


def _usable(base_url: str) -> bool:
    try:
        parts = urlsplit(base_url)
        port = parts.port  # raises for a number that is none
        (parts.hostname or "").encode("idna")  # raises for `a..b`, which no resolver takes
    except ValueError:
        return False
    known = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return known and parts.username is None and "?" not in base_url
