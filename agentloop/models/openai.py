"""OpenAI's own API through the official SDK, its retries off.

In: `Request`; out: the same `Completion` as any other transport. For other servers that speak the
format use `openai_compatible`: it needs no SDK and can ask for token ids.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from agentloop.errors import ModelError
from agentloop.models import faults, wire
from agentloop.records import Completion, Request

BASE_URL = "https://api.openai.com/v1"
_CONNECT_SECONDS = 5.0
_PLAIN = {"Accept-Encoding": "identity"}
"""Packed answers are not asked for: a small one can unpack to more than memory holds."""


class OpenAIProvider:
    """`client.chat.completions.create`; the SDK is imported on the first call."""

    def __init__(
        self, model: str, *, api_key: str, base_url: str = BASE_URL, timeout: float = 120.0
    ) -> None:
        """`timeout` is for a whole call, in seconds."""
        self.model, self.base_url, self.timeout = model, base_url, timeout
        self._key = api_key.strip()
        self._client: Any = None

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `ModelError`."""
        body = wire.encode(request, self.model)
        # The name that all of OpenAI's models take, those that reason included.
        body["max_completion_tokens"] = body.pop("max_tokens")
        if "top_k" in body:
            body["extra_body"] = {"top_k": body.pop("top_k")}
        started = time.monotonic()
        data = await self._create(body)
        return wire.decode(
            data, request, self.model, where=self.base_url, seconds=time.monotonic() - started
        )

    async def close(self) -> None:
        """Close the connections; idempotent. A later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _create(self, body: dict[str, Any]) -> bytes:
        import openai

        if self._client is None:
            limit = openai.Timeout(self.timeout, connect=_CONNECT_SECONDS)
            self._client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                timeout=limit,
                max_retries=0,
                # The SDK follows redirects, which would send the conversation somewhere else.
                http_client=openai.DefaultAsyncHttpxClient(timeout=limit, follow_redirects=False),
            )
        try:
            # The SDK's timeout is for each read; this one is for the whole call.
            async with asyncio.timeout(self.timeout):
                create = self._client.chat.completions.with_streaming_response.create
                async with create(**body, extra_headers=_PLAIN) as raw:
                    return await self._read(raw)
        except (TimeoutError, openai.APITimeoutError) as error:
            if _unconnected(error):
                raise faults.unreachable(self.base_url, error) from error
            raise faults.timed_out(self.base_url, self.timeout) from error
        except openai.APIStatusError as error:
            raise faults.from_status(
                error.status_code, error.response.text, error.response.headers,
                where=self.base_url, secret=self._key,
            ) from error  # fmt: skip
        except UnicodeEncodeError as error:
            told = f"the request holds text that is not Unicode: {error}"
            raise ModelError(told, calls=0) from error  # nothing was sent
        except openai.APIConnectionError as error:
            fault = faults.unreachable if _unconnected(error) else faults.lost
            raise fault(self.base_url, error.__cause__ or error) from error

    async def _read(self, raw: Any) -> bytes:
        """The body, at most `faults.MAX_BODY` bytes of it."""
        if raw.status_code != 200:
            raise faults.from_status(raw.status_code, "", raw.headers, where=self.base_url)
        chunks, size = [], 0
        try:
            async for chunk in raw.iter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > faults.MAX_BODY:
                    raise faults.oversized(self.base_url)
        except (ModelError, TimeoutError):
            raise
        except Exception as error:  # of whichever HTTP library the SDK has chosen
            raise faults.lost(self.base_url, error) from error
        return b"".join(chunks)


def _unconnected(error: Exception) -> bool:
    """Whether no connection was made. By name, which both HTTP libraries that the SDK may have
    chosen give it."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
