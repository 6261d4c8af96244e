"""The faults of an API, each with the one way it must end.

`AGAIN`: a passing fault, tried again until it works or the attempts are used up. `NEVER`: one typed
error after this one attempt. `TAKEN`: odd, but a reply; not asked for again.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fake_endpoint import chat
from fault_server import JSON, Play, Wire

from agentloop.records import Completion

Ending = Literal["again", "never", "taken"]
AGAIN, NEVER, TAKEN = "again", "never", "taken"


@dataclass(frozen=True)
class Fault:
    """`seen` must hold of the reply to a fault that is taken; `slow` needs a short deadline."""

    name: str
    play: Play
    ending: Ending
    reason: str = "model_error"
    seen: Callable[[Completion], bool] = lambda completion: True
    slow: bool = False
    tokens: int = 10
    """What the reply's `usage` says, when it is taken."""
    billed: int = 0
    """What the `usage` says of an answer that is refused: it is paid for all the same."""


def status(
    code: int, ending: Ending, name: str = "", *, text: str = "no", reason: str = "model_error",
    **headers: str,
) -> Fault:  # fmt: skip
    """An error answer with an error body."""
    body = json.dumps({"error": {"message": text, "code": text}}).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}

    async def play(wire: Wire) -> None:
        await wire.send(code, body, {**JSON, **named})

    return Fault(f"{code}{'-' + name if name else ''}", play, ending, reason)


def body(
    name: str, data: bytes | Any, ending: Ending, headers: Mapping[str, str] = JSON, **how: Any
) -> Fault:
    """An answer with status 200 and this body (bytes, or JSON)."""
    sent = data if isinstance(data, bytes) else json.dumps(data).encode()

    async def play(wire: Wire) -> None:
        await wire.send(200, sent, headers)

    return Fault(name, play, ending, **how)


def changed(name: str, ending: Ending, /, *, message: Any = ..., **how: Any) -> Fault:
    """A proper answer in which keys of its first choice, its message or the whole are replaced:
    `choice_x=`, `message=`, `top_x=`; the rest is for `Fault`."""
    answer = chat("odd", usage=(7, 3))
    usage = answer["usage"]
    for key in [key for key in how if key.startswith(("choice_", "top_"))]:
        where, _, field = key.partition("_")
        (answer["choices"][0] if where == "choice" else answer)[field] = how.pop(key)
    if message is not ...:
        answer["choices"][0]["message"] = message
    refused = {"billed": 10} if ending == AGAIN and answer["usage"] is usage else {}
    return body(name, answer, ending, **refused, **how)


# --- answers with an error status -----------------------------------------------------------------

LONG = "This model's maximum context length is 10 tokens"
STATUSES = [
    *(status(code, NEVER) for code in (400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 451)),
    *(status(code, AGAIN) for code in (408, 409, 429, 500, 502, 503, 504, 520, 529)),
    status(400, NEVER, "overflow", text=LONG, reason="context_overflow"),
    status(413, NEVER, "overflow", text=LONG, reason="context_overflow"),
    status(429, NEVER, "quota", text="insufficient_quota"),
    *(
        status(429, AGAIN, f"after-{name}", Retry_After=value)
        for name, value in {
            "zero": "0", "soon": "0.05", "negative": "-5", "past": "Wed, 21 Oct 2015 07:28:00 GMT",
            "words": "in a while", "nan": "nan", "inf": "inf", "nothing": "", "bad-date": "99 Foo",
        }.items()
    ),
    status(503, AGAIN, "after-zero", Retry_After="0"),
    *(
        status(code, NEVER, "elsewhere", Location="http://localhost:9/v1/chat/completions")
        for code in (301, 302, 303, 307, 308)
    ),
    status(300, NEVER),
]  # fmt: skip

# --- lines that break -----------------------------------------------------------------------------

FINE = json.dumps(chat("fine", usage=(7, 3))).encode()


def line(name: str, *steps: bytes | str, ending: Ending = AGAIN, **how: Any) -> Fault:
    """Raw bytes, then `close`, `reset` or `hang`."""

    async def play(wire: Wire) -> None:
        for step in steps:
            if isinstance(step, bytes):
                await wire.raw(step)
            elif step == "hang":
                await wire.hang()
            else:
                getattr(wire, step)()

    return Fault(name, play, ending, **how)


def head(length: int | str, *more: str) -> bytes:
    """The head of a 200 answer."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = [
    line("closed-at-once", "close"),
    line("reset-at-once", "reset"),
    line("closed-in-status", b"HTTP/1.1 2", "close"),
    line("closed-in-head", b"HTTP/1.1 200 OK\r\nContent-Ty", "close"),
    line("closed-before-body", head(len(FINE)), "close"),
    line("closed-in-body", head(len(FINE)), FINE[:40], "close"),
    line("reset-in-body", head(len(FINE)), FINE[:40], "reset"),
    line("length-too-long", head(len(FINE) + 10), FINE, "close"),
    line("length-too-short", head(len(FINE) - 5), FINE, "close"),
    line("length-garbage", head("many"), FINE, "close"),
    line("length-negative", head("-5"), FINE, "close"),
    line("length-twice", head(5, f"Content-Length: {len(FINE)}"), FINE, "close"),
    line("chunk-unended", CHUNKED + b"%x\r\n" % len(FINE) + FINE + b"\r\n", "close"),
    line("chunk-short", CHUNKED + b"%x\r\n" % len(FINE) + FINE[:40], "close"),
    line("chunk-size-garbage", CHUNKED + b"zz\r\n" + FINE + b"\r\n0\r\n\r\n", "close"),
    line("not-http", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "close"),
    line("bad-status-line", b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n", "close"),
    line("head-too-large", b"HTTP/1.1 200 OK\r\nX-Much: " + b"x" * 300_000 + b"\r\n\r\n", "close"),
    line("no-answer", "hang", reason="model_timeout", slow=True),
    line("hang-in-head", b"HTTP/1.1 200 OK\r\n", "hang", reason="model_timeout", slow=True),
    line("hang-before-body", head(len(FINE)), "hang", reason="model_timeout", slow=True),
    line("hang-in-body", head(len(FINE)), FINE[:40], "hang", reason="model_timeout", slow=True),
    line("hang-in-chunk", CHUNKED + b"ff\r\n{", "hang", reason="model_timeout", slow=True),
]  # fmt: skip


async def _drip(wire: Wire) -> None:
    import asyncio

    await wire.raw(head(len(FINE)))
    for at in range(len(FINE)):
        await wire.raw(FINE[at : at + 1])
        await asyncio.sleep(0.05)


async def _in_chunks(wire: Wire) -> None:
    await wire.chunked(*(FINE[at : at + 1] for at in range(len(FINE))))


async def _after_continue(wire: Wire) -> None:
    await wire.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
    await wire.send(200, FINE)


async def _old_http(wire: Wire) -> None:
    await wire.raw(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + FINE)
    wire.close()


def _is(text: str) -> Callable[[Completion], bool]:
    return lambda completion: completion.message.content == text


LINES += [
    Fault("drip", _drip, AGAIN, "model_timeout", slow=True),
    Fault("one-byte-chunks", _in_chunks, TAKEN, seen=_is("fine")),
    Fault("100-continue-first", _after_continue, TAKEN, seen=_is("fine")),
    Fault("http-1.0-without-length", _old_http, TAKEN, seen=_is("fine")),
]

# --- bodies ---------------------------------------------------------------------------------------

PACKED = {**JSON, "Content-Encoding": "gzip"}


def bomb(size: int) -> bytes:
    """Gzip of `size` blanks, made without holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(size >> 20)) + packer.flush()


def tool(arguments: Any, **more: Any) -> dict[str, Any]:
    """A tool call as an API gives it."""
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def says(*calls: Any) -> dict[str, Any]:
    """A message with tool calls."""
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def _ids(*wanted: str) -> Callable[[Completion], bool]:
    return lambda completion: tuple(call.id for call in completion.message.tool_calls) == wanted


def _ends(reason: str) -> Callable[[Completion], bool]:
    return lambda completion: completion.finish_reason == reason


BODIES = [
    body("empty", b"", AGAIN), body("null", None, AGAIN), body("list", [], AGAIN),
    body("text", "hello", AGAIN), body("number", 5, AGAIN), body("object", {}, AGAIN),
    body("html", b"<html>busy</html>", AGAIN, {"Content-Type": "text/html"}),
    body("error-with-200", {"error": {"message": "no"}}, AGAIN),
    body("truncated-json", FINE[:-9], AGAIN), body("two-objects", FINE + FINE, AGAIN),
    body("byte-order-mark", b"\xef\xbb\xbf" + FINE, AGAIN),
    body("stream-unasked", b"data: " + FINE + b"\n\ndata: [DONE]\n\n", AGAIN,
         {"Content-Type": "text/event-stream"}),
    body("bad-utf-8", FINE.replace(b"fine", b"\xff\xfe"), AGAIN),
    body("utf-8-cut", FINE.replace(b"fine", b"\xe2\x82"), AGAIN),
    body("utf-16", FINE.decode().encode("utf-16"), AGAIN),
    body("bad-gzip", b"\x1f\x8b\x08 no", AGAIN, PACKED),
    body("gzip-bomb", bomb(64 * 2**20), NEVER, PACKED),
    body("mebibytes-40", b" " * (40 * 2**20), NEVER),
    body("deep", b"[" * 100_000, AGAIN),
    changed("choices-empty", AGAIN, top_choices=[]),
    changed("choices-null", AGAIN, top_choices=None),
    changed("choices-object", AGAIN, top_choices={}),
    changed("choice-null", AGAIN, top_choices=[None]),
    changed("message-null", AGAIN, message=None), changed("message-text", AGAIN, message="hi"),
    changed("content-number", AGAIN, message={"role": "assistant", "content": 5}),
    changed("content-object", AGAIN, message={"role": "assistant", "content": {"a": 1}}),
    changed("tools-text", AGAIN, message={"role": "assistant", "tool_calls": "f"}),
    changed("tools-no-function", AGAIN, message=says({"id": "a"})),
    changed("usage-text", AGAIN, top_usage="much"),
    changed("usage-fraction", AGAIN, top_usage={"prompt_tokens": 1.5}),
    # Odd, but a reply.
    body("gzip-unasked", gzip.compress(FINE), TAKEN, PACKED, seen=_is("fine")),
    body("plain-text-type", FINE, TAKEN, {"Content-Type": "text/plain"}, seen=_is("fine")),
    body("blanks-around", b" \r\n " + FINE + b"\n\n", TAKEN, seen=_is("fine")),
    body("lone-surrogate", FINE.replace(b"fine", b"\\ud800"), TAKEN, seen=_is("?")),
    body("nul-character", FINE.replace(b"fine", b"a\\u0000b"), TAKEN, seen=_is("a\0b")),
    body("right-to-left", FINE.replace(b"fine", "\u202eא".encode()), TAKEN, seen=_is("\u202eא")),
    body("duplicate-keys", FINE[:-1] + b', "model": "last"}', TAKEN,
         seen=lambda completion: completion.model == "last"),
    body("nan-logprob", FINE.replace(b'"finish_reason"', b'"logprobs": {"content": [{"token": '
         b'"a", "logprob": NaN}]}, "finish_reason"'), TAKEN,
         seen=lambda completion: completion.logprobs is None),
    changed("content-null", TAKEN, message={"role": "assistant", "content": None}, seen=_is("")),
    changed("content-parts", TAKEN, seen=_is("ab"), message={
        "role": "assistant", "content": [{"type": "text", "text": t} for t in "ab"]}),
    changed("finish-length", TAKEN, choice_finish_reason="length", seen=_ends("length")),
    changed("finish-filter", TAKEN, choice_finish_reason="content_filter",
            seen=_ends("content_filter")),
    changed("finish-odd", TAKEN, choice_finish_reason="bored", seen=_ends("bored")),
    changed("finish-null", TAKEN, choice_finish_reason=None, seen=_ends("unknown")),
    changed("three-choices", TAKEN, top_choices=chat("odd")["choices"] * 3, seen=_is("odd")),
    changed("other-model", TAKEN, top_model="other",
            seen=lambda completion: completion.model == "other"),
    changed("no-model", TAKEN, top_model=None,
            seen=lambda completion: completion.model == "fake"),
    changed("no-usage", TAKEN, top_usage=None, tokens=0),
    changed("negative-usage", TAKEN, tokens=3,
            top_usage={"prompt_tokens": -7, "completion_tokens": 3}),
    changed("tool-ids-twice", TAKEN, message=says(tool("{}", id="a"), tool("{}", id="a")),
            seen=_ids("a", "a_1")),
    changed("tool-ids-missing", TAKEN, message=says(tool("{}"), tool("{}", id=None)),
            seen=_ids("call_0", "call_1")),
    changed("tool-arguments-broken", TAKEN, message=says(tool('{"a": ', id="a")), seen=_ids("a")),
    changed("tool-arguments-list", TAKEN, message=says(tool("[1]", id="a")), seen=_ids("a")),
    changed("tool-arguments-null", TAKEN, message=says(tool(None, id="a")), seen=_ids("a")),
    changed("tool-arguments-5-mebibytes", TAKEN, seen=_ids("a"),
            message=says(tool(json.dumps({"a": "x" * (5 * 2**20)}), id="a"))),
    changed("tool-arguments-deep", TAKEN, seen=_ids("a"),
            message=says(tool('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", id="a"))),
]  # fmt: skip

FAULTS = [*STATUSES, *LINES, *BODIES]
