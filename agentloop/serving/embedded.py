"""The embedded model server: `python -m agentloop.serving.embedded --model DIR --port 0`.

A subset of the OpenAI/vLLM protocol on loopback only. One JSON line on stdout says where it
listens; it ends on SIGTERM and when the process given as `--parent-pid` ends.

The decision worth knowing: idle OpenMP threads sleep instead of spinning (`OMP_WAIT_POLICY`, set
before torch is imported). On a machine shared with the runtime a spinning barrier waits for whole
scheduler slices, which makes every small operation take milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agentloop.errors import AgentLoopError

if TYPE_CHECKING:
    from agentloop.serving.engine import Engine

TOKEN_ENV = "AGENTLOOP_ENGINE_TOKEN"
MAX_BODY = 16 * 2**20
log = logging.getLogger(__name__)


def error(status: int, message: str) -> web.Response:
    """`{error: {message, type}}`, as OpenAI clients expect it."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
             413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip
    kind = kinds.get(status, "server_error")
    return web.json_response({"error": {"message": message, "type": kind}}, status=status)


def guard(token: str) -> Middleware:
    """Middleware: bearer token (when `token` is not empty), and every failure as a JSON error."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        from agentloop.serving.engine import Busy, NotServed

        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return error(401, "a valid bearer token is needed")
        try:
            return await handler(request)
        except web.HTTPException as problem:
            text = "the body is larger than 16 MiB" if problem.status == 413 else problem.reason
            return error(problem.status, text)
        except NotServed as problem:
            return error(404, str(problem.args[0]))
        except Busy as problem:
            return error(429, str(problem))
        except (ValueError, AgentLoopError) as problem:
            return error(400, str(problem))
        except Exception as problem:
            log.exception("a request failed")
            return error(500, f"{type(problem).__name__}: {problem}")

    return middleware


class Api:
    """The routes over one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def app(self, token: str) -> web.Application:
        """The application; `token` "" means no authentication."""
        app = web.Application(middlewares=[guard(token)], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.completions),
                web.post("/v1/load_lora_adapter", self.load),
                web.post("/v1/unload_lora_adapter", self.unload),
            ]
        )
        return app

    async def health(self, request: web.Request) -> web.Response:
        """`{"status": "ok"}` while the worker lives."""
        alive = self.engine.alive
        status = "ok" if alive else "dead"
        return web.json_response({"status": status}, status=200 if alive else 503)

    async def models(self, request: web.Request) -> web.Response:
        """The base model and the adapters."""
        base, context = self.engine.options.name, self.engine.context
        entries = [
            {"id": name, "object": "model", "owned_by": "agentloop", "max_model_len": context,
             "parent": None if name == base else base}
            for name in (base, *self.engine.adapters)
        ]  # fmt: skip
        return web.json_response({"object": "list", "data": entries})

    async def chat(self, request: web.Request) -> web.Response:
        """One chat completion."""
        from agentloop.serving.protocol import chat_request, response

        body = await _body(request)
        work, drift = chat_request(self.engine, body)
        done = await asyncio.wrap_future(self.engine.submit(work))
        return web.json_response(response(self.engine, work, done, body, drift=drift))

    async def completions(self, request: web.Request) -> web.Response:
        """One completion of token ids, or log-probs of given ids."""
        from agentloop.serving.protocol import completion_request, response

        body = await _body(request)
        work = completion_request(self.engine, body)
        done = await asyncio.wrap_future(self.engine.submit(work))
        return web.json_response(response(self.engine, work, done, body, drift=None))

    async def load(self, request: web.Request) -> web.Response:
        """Serve a peft adapter."""
        body = await _body(request)
        name, path = _text(body, "lora_name"), Path(_text(body, "lora_path"))
        await asyncio.wrap_future(self.engine.load(name, path))
        return web.json_response({"loaded": name})

    async def unload(self, request: web.Request) -> web.Response:
        """Stop serving an adapter."""
        name = _text(await _body(request), "lora_name")
        await asyncio.wrap_future(self.engine.unload(name))
        return web.json_response({"unloaded": name})


async def _body(request: web.Request) -> dict[str, object]:
    try:
        body = json.loads(await request.read())
    except ValueError as problem:  # UnicodeDecodeError included
        raise ValueError(f"the body is not JSON: {problem}") from problem
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _text(body: dict[str, object], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{name}` must be a text")
    return value


def _loopback(host: str) -> str:
    try:
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass  # a name, not an address: refused below like any other
    raise argparse.ArgumentTypeError(f"{host} is not a loopback address; only 127.0.0.1 is served")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="agentloop.serving.embedded", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="safetensors directory")
    parser.add_argument("--name", default="base", help="model name in the protocol")
    parser.add_argument("--host", type=_loopback, default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=0, help="0: the model's own")
    parser.add_argument("--cache-mib", type=int, default=384, help="cached prefixes")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process ends")
    return parser.parse_args(argv)


def build_engine(options: argparse.Namespace) -> Engine:
    """Import torch and load the model. Raises `AgentLoopError` on an unusable directory."""
    import torch

    from agentloop.serving.batch import Limits
    from agentloop.serving.engine import Engine, Options

    if options.threads:
        torch.set_num_threads(options.threads)
    return Engine(
        options.model,
        Options(
            name=options.name,
            dtype=options.dtype,
            device=options.device,
            limits=Limits(max_batch=options.max_batch, cache_bytes=options.cache_mib * 2**20),
            context=options.max_model_len,
        ),
    )


async def serve(engine: Engine, options: argparse.Namespace) -> None:
    """Listen until a signal or the parent's end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        Api(engine).app(os.environ.get(TOKEN_ENV, "")),
        access_log=None, shutdown_timeout=0.2, handler_cancellation=True,
    )  # fmt: skip
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    port = runner.addresses[0][1]
    ready = {"port": port, "pid": os.getpid(), "model": options.name}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    while not stop.is_set() and _parent_lives(options.parent_pid):
        try:
            await asyncio.wait_for(stop.wait(), timeout=1)
        except TimeoutError:
            continue
    await runner.cleanup()


def _parent_lives(pid: int) -> bool:
    # The parent's own child sees itself re-parented; a pid could be reused, this cannot lie.
    return not pid or os.getppid() == pid


def main(argv: list[str] | None = None) -> int:
    """Run the server; exit status 2 on an unusable model."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    options = arguments(argv)
    try:
        engine = build_engine(options)
    except AgentLoopError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code
    asyncio.run(serve(engine, options))
    # A decoding step in flight is not worth waiting for; nothing here is persistent.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
