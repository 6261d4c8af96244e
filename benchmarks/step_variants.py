"""One way of keeping an agent's steps: the process that `benchmarks.steps` starts for each variant.

In: the variant's name, how many runs of how many steps. Out: one line of JSON: microseconds of CPU
per step (all threads), bytes handed to the system per byte of payload (`wchar` of `/proc/self/io`,
closing included), and bytes on disk per byte of payload. Payload: each message once, as JSON.
"""

import argparse
import asyncio
import json
import operator
import os
import random
import sqlite3
import string
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypedDict

from benchmarks.harness import spent

TEXT = 470
"""Characters of a message, which makes 0.5 kB of JSON."""


@cache
def text(number: int) -> str:
    """Words of random letters, different for each number."""
    rng = random.Random(number)
    words = ("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(99))
    return " ".join(words)[:TEXT]


def message(number: int) -> dict[str, Any]:
    """What a node says."""
    return {"role": ("assistant", "user")[number % 2], "content": text(number)}


def graph(steps: int, *, delta: bool) -> Any:
    """model -> tools -> model ... until `steps` nodes have run, each appending one message."""
    from langgraph.channels.delta import DeltaChannel
    from langgraph.graph import END, START, StateGraph

    def join(old: list[Any], new: Sequence[list[Any]]) -> list[Any]:
        return [*old, *(item for items in new for item in items)]

    kept: Any = DeltaChannel(join) if delta else operator.add

    class State(TypedDict):
        messages: Annotated[list[dict[str, Any]], kept]
        n: int

    async def node(now: Any) -> Any:
        return {"messages": [message(now["n"])], "n": now["n"] + 1}

    builder: Any = StateGraph(State)
    builder.add_node("model", node).add_node("tools", node).add_edge(START, "model")
    builder.add_conditional_edges("model", lambda now: END if now["n"] >= steps else "tools")
    builder.add_conditional_edges("tools", lambda now: END if now["n"] >= steps else "model")
    return builder


async def langgraph(variant: str, folder: Path, runs: int, steps: int) -> float:
    """CPU seconds; a variant is `none`, or SAVER:DURABILITY[:delta]."""
    from agentloop.graphs.checkpoints import DeltaSaver  # first, for its settings of LangGraph
    from agentloop.trajectories.redact import Redactor

    name, durability, channel = (variant + "::").split(":")[:3]
    async with AsyncExitStack() as stack:
        saver: Any = None
        if name == "stock":
            from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

            opened = AsyncSqliteSaver.from_conn_string(str(folder / "stock.db"))
            saver = await stack.enter_async_context(opened)
        elif name == "agentloop":
            saver = DeltaSaver(folder, redact=Redactor.from_environment())  # as a run does
        elif name == "memory":
            from langgraph.checkpoint.memory import InMemorySaver

            saver = InMemorySaver()
        agent = graph(steps, delta=channel == "delta").compile(checkpointer=saver)

        async def run(thread: str) -> None:
            config = {"configurable": {"thread_id": thread}, "recursion_limit": steps + 5}
            options = {"durability": durability} if saver is not None else {}
            final = await agent.ainvoke({"messages": [], "n": 0}, config, **options)
            assert len(final["messages"]) == steps

        await run("warm")
        with spent() as took:
            for number in range(runs):
                await run(f"run-{number}")
    return took.cpu


def bare_sqlite(folder: Path, runs: int, steps: int) -> float:
    """The payload alone, a commit a step, with the stock saver's settings (WAL, FULL)."""
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("CREATE TABLE step (thread TEXT, n INTEGER, body BLOB, PRIMARY KEY (thread, n))")
    with spent() as took:
        for run in range(runs):
            for number in range(steps):
                body = json.dumps(message(number)).encode()
                db.execute("INSERT INTO step VALUES (?, ?, ?)", (f"run-{run}", number, body))
    db.close()
    return took.cpu


def bare_file(folder: Path, runs: int, steps: int) -> float:
    """The payload alone, one `write` a step."""
    with spent() as took:
        for run in range(runs):
            with (folder / f"run-{run}").open("ab", buffering=0) as file:
                for number in range(steps):
                    file.write(json.dumps(message(number)).encode())
    return took.cpu


def written() -> int:
    """Bytes this process has handed to `write` so far; 0 where the system does not say."""
    counts = Path("/proc/self/io")
    if not counts.is_file():
        return 0
    lines = dict(line.split(": ") for line in counts.read_text(encoding="utf-8").splitlines())
    return int(lines["wchar"])


def main() -> None:
    """Measure one variant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("runs", type=int)
    parser.add_argument("steps", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), written()
        if given.variant in BARE:
            cpu, threads = BARE[given.variant](folder, given.runs, given.steps), given.runs
        else:
            cpu = asyncio.run(langgraph(given.variant, folder, given.runs, given.steps))
            threads = given.runs + 1  # the warm one is written as well
        out = written() - before
        stored = sum(os.path.getsize(folder / one) for one in os.listdir(folder))
    payload = threads * sum(len(json.dumps(message(n)).encode()) for n in range(given.steps))
    print(json.dumps({
        "cpu_us_per_step": round(1e6 * cpu / (given.runs * given.steps), 1),
        "written_per_payload": round(out / payload, 3),
        "stored_per_payload": round(stored / payload, 3),
    }))  # fmt: skip


BARE = {"bare sqlite": bare_sqlite, "bare file": bare_file}

if __name__ == "__main__":
    main()
