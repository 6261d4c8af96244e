"""A hundred providers through litellm, which is imported on the first call (about 8 s of CPU).

In: `Request`; out: the same `Completion` as any other transport, with the cost litellm knows. Only
the library is used, never its proxy, router or retries; releases known to be bad are refused.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agentloop.errors import UNTOLD, MissingDependency, ModelError, UsageError
from agentloop.models import faults, wire
from agentloop.records import Completion, Request

_INSTALL = 'pip install "agentloop[api]"'
# Read at import: no price list from the network, no `.env` file, no callbacks.
_SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",
}


class LiteLLM:
    """`provider/NAME` through litellm; keys are read from each provider's own variable."""

    def __init__(
        self, model: str, *, timeout: float = 120.0, base_url: str | None = None, api_key: str = ""
    ) -> None:
        """`timeout` is for a whole call, in seconds. Raises `MissingDependency` or `UsageError`
        when litellm is absent or of a release that must not run; it is not imported yet."""
        _check_version()
        self.model, self.timeout = model, timeout
        self._connection = {"api_base": base_url, "api_key": api_key or None}
        self._secret = api_key
        self._litellm: Any = None

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `ModelError`."""
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(_load)
        where, started = f"litellm `{self.model}`", time.monotonic()
        try:
            async with asyncio.timeout(self.timeout):
                answer = await self._litellm.acompletion(
                    **wire.encode(request, self.model),
                    **self._connection,
                    timeout=self.timeout,
                    num_retries=0,
                    max_retries=0,
                    drop_params=True,  # a provider without seeds still answers
                )
        except TimeoutError as error:
            raise faults.timed_out(where, self.timeout) from error
        except tuple(self._litellm.exceptions.LITELLM_EXCEPTION_TYPES) as error:
            raise self._fault(error, where) from error
        except Exception as error:  # an answer that its parsers were not made for
            raise faults.unreadable(where, f"{type(error).__name__}: {error}") from error
        seconds = time.monotonic() - started
        completion = wire.decode(
            answer.model_dump(), request, self.model, where=where, seconds=seconds
        )
        usd = answer._hidden_params.get("response_cost") or 0.0
        return replace(completion, usage=replace(completion.usage, usd=usd))

    async def close(self) -> None:
        """Close litellm's shared connections, if it was ever used."""
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()

    def _fault(self, error: Any, where: str) -> ModelError:
        kinds = self._litellm.exceptions
        if isinstance(error, kinds.ContextWindowExceededError):
            return faults.overflow(where, str(error))
        if isinstance(error, kinds.Timeout):
            return faults.timed_out(where, self.timeout)
        known = vars(error)
        headers = known.get("litellm_response_headers")
        fault = faults.from_status(
            known.get("status_code", 500), str(error), headers or {},
            where=where, secret=self._secret,
        )  # fmt: skip
        if headers is None and fault.retryable:  # its own words for no answer or an unreadable one
            fault.bill = UNTOLD
        return fault


def _check_version() -> None:
    try:
        installed = version("litellm")
    except PackageNotFoundError as error:
        raise MissingDependency("litellm", _INSTALL) from error
    release = tuple(int(part) for part in installed.split(".")[:2])
    if not (1, 106) <= release < (2, 0) or release == (1, 107):
        raise UsageError(
            f"litellm {installed} is not used (allowed: >=1.106,<2,!=1.107.*); run: {_INSTALL}"
        )


def _load() -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import litellm
    except ImportError as error:
        raise MissingDependency(f"a part of litellm ({error.name})", _INSTALL) from error
    litellm.suppress_debug_info = True  # else it prints advice to stdout on errors
    return litellm
