"""What went wrong with an endpoint, as one typed `ModelError`; every transport uses this table.

Retryable: 408, 409, 429, 5xx, a lost connection, a missed deadline, a reply that is not one.
Not retryable: any other status, a redirect, a refused certificate, a spent quota.
To be paid for, perhaps (`ModelError.bill`): what was asked and had no answer, or one of status 200
that is no reply; never what was refused by its status, or did not reach the endpoint.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from agentloop.errors import UNTOLD, ModelError

_AGAIN = frozenset({408, 409, 429})
_OVERFLOW = (
    "context length", "context_length", "context window", "context size", "context overflow",
    "maximum context",
    "max_model_len", "prompt is too long", "too many tokens", "input is too long",
)  # fmt: skip
_HINTS = {
    401: "; check the API key",
    403: "; the key may not use this model",
    404: "; check the base URL and the model's name",
}
_EXCERPT = 300
MAX_BODY = 32 * 2**20
"""Bytes of an answer, unpacked; 100,000 tokens with their log-probs take about 10 MiB."""


def from_status(
    status: int, body: str, headers: Mapping[str, str], *, where: str, secret: str = ""
) -> ModelError:
    """The error for an answer with a status other than 200. `secret` is blotted out of `body`."""
    said = _said(body, secret)
    lowered = said.lower()
    if status in (400, 413) and any(words in lowered for words in _OVERFLOW):
        return overflow(where, said)
    if 300 <= status < 400:
        return ModelError(f"{where} redirects elsewhere ({status}); give the final base URL")
    spent = status == 429 and "insufficient_quota" in body
    return ModelError(
        f"{where} answered {status}: {said or 'no text'}{_HINTS.get(status, '')}",
        retryable=(status in _AGAIN or status >= 500) and not spent,
        retry_after=retry_after(headers),
    )


def overflow(where: str, said: str) -> ModelError:
    """The prompt and the reply do not fit the model's context."""
    return ModelError(
        f"{where} refused the prompt as too long: {said[:_EXCERPT]}", reason="context_overflow"
    )


def timed_out(where: str, seconds: float, last: ModelError | None = None) -> ModelError:
    """No whole answer within the deadline; `last` is what an earlier attempt met."""
    met = f"; the last answer: {last}" if last is not None else ""
    return ModelError(
        f"{where} did not answer within {seconds:g} s{met}", reason="model_timeout",
        retryable=True, bill=UNTOLD,
    )  # fmt: skip


def unreachable(where: str, cause: BaseException, *, retryable: bool = True) -> ModelError:
    """No connection was made, or (then never retryable) it was not trusted."""
    return ModelError(
        f"{where} cannot be reached: {str(cause) or type(cause).__name__}",
        retryable=retryable and not _distrusted(cause),
    )


def lost(where: str, cause: BaseException) -> ModelError:
    """The connection broke after the request may have been sent."""
    error = unreachable(where, cause)
    error.bill = UNTOLD
    return error


def unreadable(where: str, detail: str, bill: tuple[int, int] = UNTOLD) -> ModelError:
    """An answer with status 200 that is not a chat completion."""
    return ModelError(
        f"{where} gave an unreadable answer: {detail[:_EXCERPT]}", retryable=True, bill=bill
    )


def mislabelled(where: str, policy: str, served: str, bill: tuple[int, int]) -> ModelError:
    """The endpoint says that another model answered than the policy that was asked for."""
    return ModelError(
        f"{where} answered with `{served[:_EXCERPT]}` in place of policy `{policy}`", bill=bill
    )


def oversized(where: str) -> ModelError:
    """An answer of more than `MAX_BODY` bytes; asked again, it would be no smaller."""
    return ModelError(f"{where} sent more than {MAX_BODY >> 20} MiB", bill=UNTOLD)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or an HTTP date (RFC 9110, 10.2.3).

    `headers` is case-insensitive. `None` when the header is absent or makes no sense.
    """
    text = headers.get("Retry-After") or headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _distrusted(cause: BaseException | None) -> bool:
    """Whether TLS was refused (a certificate, a protocol), somewhere in the chain of causes."""
    cut = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # lost, not refused
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, cut):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _said(body: str, secret: str) -> str:
    """The message of an OpenAI error body, else the beginning of the text; without `secret`, which
    is taken out before the text is cut, or a part of it would be left."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = body
    text = " ".join(str(message).split())
    return (text.replace(secret, "***") if secret else text)[:_EXCERPT]
