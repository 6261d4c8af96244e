"""Threads for synchronous nodes: a hung one delays nobody and does not keep the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from agentloop.graphs.threads import FIRST, Threads, serve


def test_results_and_errors_come_back_and_threads_are_used_again() -> None:
    pool = Threads()
    assert [pool.submit(pow, n, 2).result(5) for n in range(50)] == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    assert len(pool._started) <= 2
    pool.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(pow, 2, 2)
    assert not any(thread.is_alive() for thread in pool._started)


def test_hung_work_does_not_starve_the_rest() -> None:
    pool, release = Threads(), threading.Event()
    for _ in range(3 * FIRST):
        pool.submit(release.wait, 30)
    assert pool.submit(pow, 3, 2).result(5) == 9
    release.set()
    pool.shutdown()


def test_work_cancelled_while_it_waits_is_not_run() -> None:
    pool, release, ran = Threads(), threading.Event(), []
    for _ in range(FIRST):
        pool.submit(release.wait, 30)
    waiting = pool.submit(ran.append, 1)
    assert waiting.cancel()
    release.set()
    assert pool.submit(pow, 2, 3).result(5) == 8 and ran == []
    pool.shutdown()


def test_a_loop_is_served_once() -> None:
    async def main() -> set[str]:
        serve(asyncio.get_running_loop())
        first = await asyncio.to_thread(threading.current_thread)
        serve(asyncio.get_running_loop())
        return {first.name, (await asyncio.to_thread(threading.current_thread)).name}

    assert asyncio.run(main()) == {"agentloop-sync"}


@pytest.mark.integration
def test_a_hung_node_does_not_keep_the_process_alive() -> None:
    code = """
import asyncio, time
from langgraph.graph import END, START, StateGraph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Limits, Sampling, Task

def node(state: dict) -> dict:
    time.sleep(600)

builder = StateGraph(dict)
builder.add_node("node", node).add_edge(START, "node").add_edge("node", END)
order = Attempt(task=Task(id="t", prompt="p"), bundle="b", system="", sampling=Sampling(),
                purpose="eval", run="r")
runner = Runner(builder.compile())
[made] = asyncio.run(runner.run([order], model=Scripted([]), limits=Limits(seconds=0.2)))
print(made.failure.reason)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "time_limit"
    assert time.monotonic() - started < 30, "the 600 s of the node were not waited for"
