"""`kill -9` in the middle of rollouts: at most the step in flight runs again, and what is recorded
is what an undisturbed rollout records.

A rollout runs in a process of its own (a fork, for speed). Model and tool write a line to a file
when a step begins and when it has had its effect; the file outlives the process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.records import (
    Attempt,
    Completion,
    Episode,
    Limits,
    Message,
    Request,
    Sampling,
    Task,
    Usage,
)
from agentloop.tools.spec import tool
from agentloop.trajectories.codec import decode, encode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TURNS = 5
STEPS = 2 * TURNS - 1
ORDER = Attempt(
    task=Task(id="count", prompt="Count."), bundle="b", system="Use the tool.",
    sampling=Sampling(seed=1), purpose="eval", run="r",
)  # fmt: skip
Happen = Callable[[str], None]


class Counting:
    """A model whose reply depends on the conversation alone, with ids of its own making."""

    def __init__(self, happen: Happen) -> None:
        self._happen = happen

    async def complete(self, request: Request) -> Completion:
        turn = sum(message.role == "assistant" for message in request.messages)
        self._happen(f"model {turn}")
        await asyncio.sleep(0.002)
        text = f'Step {turn}.\n```mark\n{{"n": {turn}}}\n```' if turn < TURNS - 1 else "Answer: 5"
        prompt = tuple(ord(c) for message in request.messages for c in message.content)
        return Completion(
            message=Message(role="assistant", content=text), finish_reason="stop", model="m",
            usage=Usage(prompt_tokens=len(prompt), completion_tokens=len(text), calls=1),
            prompt_ids=prompt, completion_ids=tuple(map(ord, text)), logprobs=(-0.5,) * len(text),
        )  # fmt: skip


def rollout(folder: Path, happen: Happen) -> None:
    """One rollout, to `episode.json`."""

    @tool
    def mark(n: int) -> str:
        """Mark a number."""
        happen(f"tool {n}")
        return "m" * 400

    runner = Runner(load_graph("react", [ROOT], ROOT), folder / "steps", native_tools=False)
    (episode,) = asyncio.run(
        runner.run([ORDER], model=Counting(happen), tools=[mark], limits=Limits(turns=TURNS))
    )
    (folder / "episode.json").write_bytes(encode(episode))


def child(folder: Path, kill_at: int) -> None:
    """Note what happens; die at the `kill_at`-th thing."""
    happened = 0

    def happen(what: str) -> None:
        nonlocal happened
        with (folder / "happened").open("a") as file:
            file.write(what + "\n")
        happened += 1
        if happened == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    rollout(folder, happen)


def start(folder: Path, kill_at: int = 0) -> Any:
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder, kill_at))
    process.start()
    return process


def happened(folder: Path) -> list[str]:
    file = folder / "happened"
    return file.read_text().splitlines() if file.exists() else []


def recorded(folder: Path) -> Episode:
    """Without the time it took."""
    return replace(decode(Episode, (folder / "episode.json").read_bytes()), started=0, seconds=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    rollout(tmp_path_factory.mktemp("warm"), lambda what: None)  # what is imported late, once
    start(folder).join()
    assert len(happened(folder)) == STEPS and recorded(folder).answer == "5"
    return folder


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_killed_within_a_step_only_that_step_runs_again(
    tmp_path: Path, undisturbed: Path, kill_at: int
) -> None:
    killed = start(tmp_path, kill_at)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    start(tmp_path).join()
    counts = Counter(happened(tmp_path))
    in_flight = happened(undisturbed)[kill_at - 1]
    assert counts == Counter(happened(undisturbed)) + Counter([in_flight])
    assert recorded(tmp_path) == recorded(undisturbed)


def test_killed_again_and_again_each_kill_costs_a_step_at_most(
    tmp_path: Path, undisturbed: Path
) -> None:
    rng = random.Random(7)
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        kills = 0
        while not (folder / "episode.json").exists():
            before, process = len(happened(folder)), start(folder)
            while process.is_alive() and len(happened(folder)) == before:
                time.sleep(0.001)  # until it is on its way
            time.sleep(rng.expovariate(1 / 0.03))
            process.kill()
            process.join()
            kills += 1
            assert kills < 100
        counts = Counter(happened(folder))
        assert sum(counts.values()) <= STEPS + kills
        assert recorded(folder) == recorded(undisturbed)
