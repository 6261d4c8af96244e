"""OpenAI's own API through the official SDK, its retries off.

In: `Request`; out: the same `Completion` as any other transport. For other servers that speak the
format use `openai_compatible`: it needs no SDK and can ask for token ids.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from agentloop.models import faults, wire
from agentloop.records import Completion, Request

BASE_URL = "https://api.openai.com/v1"
_CONNECT_SECONDS = 5.0


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
            self._client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                timeout=openai.Timeout(self.timeout, connect=_CONNECT_SECONDS),
                max_retries=0,
            )
        try:
            # The SDK's timeout is for each read; this one is for the whole call.
            async with asyncio.timeout(self.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(**body)
                content: bytes = raw.content
                return content
        except (TimeoutError, openai.APITimeoutError) as error:
            raise faults.timed_out(self.base_url, self.timeout) from error
        except openai.APIStatusError as error:
            raise faults.from_status(
                error.status_code, error.response.text, error.response.headers,
                where=self.base_url, secret=self._key,
            ) from error  # fmt: skip
        except openai.APIConnectionError as error:
            raise faults.unreachable(self.base_url, error.__cause__ or error) from error
