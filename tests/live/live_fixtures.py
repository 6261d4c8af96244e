"""What the tests of this folder share: a scripted workflow that is served, and its clients.

The model's reply names the instruction and the policy that it ran under, so that a reply shows by
itself which bundle it is of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import tiny_workflow

from agentloop.gateway.front import Front
from agentloop.lanes.bench import Bench
from agentloop.live.serving import Service
from agentloop.policies.registry import Policies
from agentloop.ports import Server
from agentloop.records import Bundle, Endpoint, Episode, Instruction, Policy
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import Options, alias_of, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

YAML = """\
title: Served
model: scripted
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
instruction: MARK-0
tools: [python]
limits: {turns: 4, tokens: 400, seconds: 60}
reward: agentloop.rewards.verify:Exact
scripted:
  tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
  replies: ./parts.py:replies
"""

PARTS = '''\
"""A model that says under what it runs; asked for a tool, it calls one."""

import re


def replies(request):
    system = next((m.content for m in request.messages if m.role == "system"), "")
    said = [m for m in request.messages if m.role != "system"]
    last = said[-1].content
    marks = " ".join(re.findall(r"MARK-\\d+", system)) + f" {request.policy or 'base'}"
    if last.startswith("Output:") or said[-1].role == "tool":
        return f"Answer: {marks} got {last.split()[-1]}"
    if last.startswith("compute"):
        return f"```python\\nprint({last.removeprefix('compute')})\\n```"
    if last.startswith("echo"):
        return f"Answer: {last}"
    if last.startswith("call"):
        return "```add\\n2\\n```"
    return f"Answer: {marks} turn {len(said)}"
'''
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}


def text_of(reply: Any) -> str:
    """What a reply says."""
    return str(reply["choices"][0]["message"]["content"])


def said(*texts: str) -> Any:
    """A conversation, the user's turn first."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


@dataclass
class Live:
    """A workflow that is served."""

    archive: Archive
    bench: Bench
    service: Service
    front: Front
    http: aiohttp.ClientSession
    ended: list[tuple[str, Episode, bool]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.front.base_url().removesuffix("/v1")

    def client(self, session: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """OpenAI's own client."""
        return openai.AsyncOpenAI(
            base_url=self.front.base_url(session), api_key=self.front.token, max_retries=0,
            **options,
        )  # fmt: skip

    async def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """A bare request; `headers` replace the token."""
        given = headers or {"Authorization": f"Bearer {self.front.token}"}
        async with self.http.request(method, self.root + path, json=body, headers=given) as answer:
            return answer.status, await answer.json()

    async def ask(self, messages: Any, *, conversation: str = "", **fields: Any) -> Any:
        """A reply to a request made without a client of OpenAI's (which costs more than a server of
        ours), or the reason why there is none."""
        head = {"Authorization": f"Bearer {self.front.token}"}
        if conversation:
            head["x-agentloop-conversation"] = conversation
        body = {"messages": messages, **fields}
        status, reply = await self.send("POST", "/v1/chat/completions", body, **head)
        assert status == 200, reply
        return reply

    async def episodes(self, n: int) -> list[Episode]:
        """What was logged, once there are `n`."""
        for _ in range(500):
            found = self.archive.episodes(Query(purpose="serve"))
            if len(found) >= n:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"{len(found)} episodes of {n} were logged")

    def bundle(self, number: int, policy: str | None = None) -> str:
        """A bundle whose replies say MARK-`number`."""
        policies = {"agent": policy} if policy else {}
        text = self.archive.put(Instruction(text=f"MARK-{number}"))
        return self.archive.put(Bundle(instruction=text, policies=policies))

    def policy(self, sha256: str) -> str:
        return self.archive.put(Policy(base="scripted", sha256=sha256))

    def promote(self, bundle: str, side: str = "champion") -> None:
        alias = alias_of("tiny").replace("champion", side)
        self.archive.point(alias, bundle, reason="test", scope="tiny")


@asynccontextmanager
async def live(
    root: Path,
    *,
    serve: str = "",
    yaml: str = YAML,
    parts: str = PARTS,
    idle: float = 30.0,
    server: Server | None = None,
) -> AsyncIterator[Live]:
    """`serve` is the inside of the workflow's section; `server` stands for a model server."""
    folder = root / "workflows" / "tiny"
    if not folder.is_dir():
        text = yaml + (f"serve: {{{serve}}}\n" if serve else "")
        tiny_workflow.make(root, yaml=text, parts=parts)
    space = Workspace.find(root)
    loaded = load(str(folder), space)
    home = root / "home"
    home.mkdir(exist_ok=True)
    ended: list[tuple[str, Episode, bool]] = []
    lines: list[str] = []
    with Archive(home) as archive:
        options = Options(
            run=f"run-{time.time_ns()}", seed=0, workspace=space, home=home, live=True
        )
        async with assemble(loaded, archive, options) as kit, aiohttp.ClientSession() as http:
            kit.bench.server = server
            if server is not None:
                kit.bench.policies = Shelf(home)
            part = loaded.spec.serve.reward
            service = Service(
                kit.bench, loaded.spec.serve, idle=idle, say=lines.append,
                tell=lambda *one: ended.append(one),
                reward=None if part is None else loaded.build(part),
            )  # fmt: skip
            async with service, Front(service) as front:
                yield Live(archive, kit.bench, service, front, http, ended, lines)


class Shelf(Policies):
    """Every policy is there."""

    def path(self, name: str) -> Path:
        return self.root / name


class ModelServer:
    """Stands for a model server: notes what is loaded, and refuses what it is told to."""

    def __init__(self, load: Callable[[str], None] = lambda name: None) -> None:
        self.loaded: set[str] = set()
        self.orders: list[tuple[str, str]] = []
        self._load = load

    async def start(self) -> Endpoint:
        raise NotImplementedError

    async def load_policy(self, name: str, path: Path) -> None:
        self._load(name)
        self.loaded.add(name)
        self.orders.append(("load", name))

    async def unload_policy(self, name: str) -> None:
        self.loaded.discard(name)
        self.orders.append(("unload", name))

    async def stop(self) -> None:
        """Nothing runs."""
