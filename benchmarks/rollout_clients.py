"""One side of `benchmarks.rollouts`: `... rollout_clients WHO URL ROLLOUTS IN_FLIGHT`.

Goes in: the base URL of a mock that plays a model of six turns, five of them with a tool call.
Comes out: one line of JSON with CPU milliseconds per rollout and rollouts per second. Both sides
run the shipped agent (`graphs/react.py`) with the same tool: `agentloop` with the whole chain of a
workflow around the model, every call and every episode durable in a log before it counts;
`bare` is the compiled graph alone, with a call that sends and parses the least it can of the same
replies; `bare without ids` does not ask for their token ids and so gets shorter ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from agentloop.graphs.context import RunContext
from agentloop.graphs.load import Graph, load_graph
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.run import Runner
from agentloop.models.chain import chain
from agentloop.models.journal import Journaled
from agentloop.models.meter import FREE, Meter
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Attempt, Completion, Episode, Limits, Request, Sampling, Task, Usage
from agentloop.store.archive import Archive
from agentloop.tools.spec import tool
from agentloop.workflows.models import ScopedJournal
from benchmarks.harness import spent

TURNS, GROUP, WARM = 6, 256, 16
SYSTEM = "You are careful. Use the calculator for every number that you need."
LIMITS = Limits(turns=TURNS, tokens=100_000, seconds=300)


@tool
async def calculator(expression: str) -> str:
    """Calculate."""
    return "42"


def prompt(number: int) -> str:
    """A task of its own for each rollout."""
    return f"What is {number} times {number + 1}?"


class BareModel:
    """Sends the conversation, gives back the reply: what any caller must do."""

    def __init__(self, session: aiohttp.ClientSession, url: str, asked: dict[str, Any]) -> None:
        self.session, self.url, self.asked = session, f"{url}/chat/completions", asked

    async def complete(self, request: Request) -> Completion:
        """One reply, without its token ids."""
        body: dict[str, Any] = {
            "model": "mock",
            "messages": [to_dict(message) for message in request.messages],
            "tools": [
                {"type": "function", "function": {"name": one.name, "parameters": one.parameters}}
                for one in request.tools
            ],
            **self.asked,
        }
        async with self.session.post(self.url, json=body) as response:
            choice = (await response.json())["choices"][0]
        return Completion(
            message=to_message(choice["message"]), finish_reason=choice["finish_reason"],
            usage=Usage(), model="mock",
        )  # fmt: skip


async def bare(graph: Graph, url: str, rollouts: int, in_flight: int, *, ids: bool = True) -> None:
    """The compiled graph, so many at a time; nothing is kept but the answer."""
    asked = {"logprobs": True, "return_token_ids": True} if ids else {}
    waiting = iter(range(rollouts))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        context = RunContext(
            model=BareModel(session, url, asked),  # type: ignore[arg-type]
            tools={"calculator": calculator}, limits=LIMITS, native_tools=True,
        )  # fmt: skip

        async def work() -> None:
            for number in waiting:
                messages = [{"role": "system", "content": SYSTEM},
                            {"role": "user", "content": prompt(number)}]  # fmt: skip
                state = await graph.ainvoke(
                    {"messages": messages}, {"recursion_limit": 100}, context=context
                )
                assert "42" in state["answer"]

        await asyncio.gather(*(work() for _ in range(in_flight)))


async def agentloop(graph: Graph, url: str, rollouts: int, in_flight: int) -> None:
    """The model chain, journal, runner and log of `lanes/bench.py`: each call is durable before its
    reply is used, episodes are logged in groups while further rollouts run (the bench waits for
    each group, to score it). What it gave is checked when it is the warm-up."""
    transport = OpenAICompatible(url, model="mock", extensions=True)
    with tempfile.TemporaryDirectory() as folder, Archive(Path(folder)) as archive:
        model = Journaled(chain(transport, Meter(prices=FREE)), ScopedJournal(archive, "run"))
        orders = [
            Attempt(
                task=Task(id=f"t{number}", prompt=prompt(number)), bundle="b", system=SYSTEM,
                sampling=Sampling(temperature=1.0, seed=0), purpose="collect", run="run",
            )
            for number in range(rollouts)
        ]  # fmt: skip
        done: list[Episode] = []
        writes: set[asyncio.Task[None]] = set()

        def keep(episode: Episode) -> None:
            done.append(episode)
            if len(done) == GROUP:
                writes.add(asyncio.create_task(archive.add_episodes(tuple(done))))
                done.clear()

        episodes = await Runner(graph).run(
            orders, model=model, tools=(calculator,), limits=LIMITS, concurrency=in_flight,
            on_done=keep,
        )  # fmt: skip
        await asyncio.gather(archive.add_episodes(done), *writes)
        await transport.close()
        if rollouts <= WARM:
            check(episodes, archive)


def check(episodes: Sequence[Episode], archive: Archive) -> None:
    """Every rollout was right, its tokens exact, and all of it is in the log."""
    for episode in episodes:
        assert episode.failure is None and "42" in (episode.answer or ""), episode.failure
        [trajectory] = episode.trajectories
        assert (trajectory.clean, trajectory.drift) == (TURNS - 1, 0), "ids are not exact"
    rows, problems = archive.log.verify()
    assert not problems and rows == len(episodes) * (TURNS + 1), (rows, problems)


def main() -> None:
    """Warm up, measure, print."""
    who, url, rollouts, in_flight = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    root = Path(__file__).resolve().parents[1]
    graph = load_graph("react", [root], root)
    sides: dict[str, Callable[[Graph, str, int, int], Awaitable[None]]] = {
        "bare": bare, "bare without ids": partial(bare, ids=False), "agentloop": agentloop,
    }  # fmt: skip

    async def measured() -> dict[str, float]:
        await sides[who](graph, url, WARM, WARM)
        with spent() as took:
            await sides[who](graph, url, rollouts, in_flight)
        return {"cpu_ms": 1000 * took.cpu / rollouts, "per_second": rollouts / took.wall}

    print(json.dumps(asyncio.run(measured())))


if __name__ == "__main__":
    main()
