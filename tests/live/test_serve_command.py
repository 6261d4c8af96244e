"""`agentloop serve` as a process: what it prints, what it refuses, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.cli.serve import _tell
from agentloop.records import Episode, Task
from agentloop.store.archive import Archive
from agentloop.store.query import Query

ASK = {"messages": [{"role": "user", "content": "Multiply 11 by 61."}], "store": True}
GRAPH = """

import asyncio
from langgraph.graph import END, START, MessagesState, StateGraph
from agentloop import chat_model


async def slow(state):
    reply = await chat_model().ainvoke(state["messages"])
    await asyncio.sleep(SECONDS)
    return {"messages": [reply]}


graph = StateGraph(MessagesState).add_node("slow", slow).add_edge(START, "slow")
graph = graph.add_edge("slow", END).compile()
"""


@contextmanager
def served(root: Path, *options: str, **parts: Any) -> Iterator[tuple[Any, Any]]:
    """(the process, what it told with `--json`)."""
    workflow = str(tiny_workflow.make(root, **parts))
    command = [sys.executable, "-m", "agentloop", "serve", workflow, "--json", *options]
    environment = {**os.environ, "AGENTLOOP_HOME": str(root / "home")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def post(told: Any, path: str = "/v1/chat/completions", body: Any = ASK) -> tuple[int, Any]:
    url = told["base_url"].removesuffix("/v1") + path
    head = {"Authorization": f"Bearer {told['api_key']}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.integration  # a process that starts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped_and_records_what_is_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    with served(tmp_path) as (process, told):
        assert post(told)[1]["choices"][0]["message"]["content"] == "42"
        status, reply = post(told, "/r/me/v1/chat/completions")
        assert status == 200 and reply["choices"][0]["message"]["content"] == "Answer: 42"
        tool = {"type": "function", "function": {"name": "add"}}
        assert post(told, body={**ASK, "tools": [tool]})[0] == 200
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        said = process.stderr.read()
        assert "me: ended after 1 calls" in said and told["api_key"] not in said
    with Archive(tmp_path / "home") as archive:
        episodes = archive.episodes(Query(run=told["run"]))
    assert len(episodes) == 3 and all(one.failure is None for one in episodes)


@pytest.mark.integration
@pytest.mark.parametrize(("seconds", "finished"), [(2.5, True), (60.0, False)])
def test_at_the_end_a_request_is_finished_or_recorded(
    tmp_path: Path, seconds: float, finished: bool
) -> None:
    yaml = tiny_workflow.YAML.replace("tools: [python]", "graph: ./parts.py:graph")
    parts = tiny_workflow.PARTS + GRAPH.replace("SECONDS", str(seconds))
    found: list[Any] = []
    with served(tmp_path, yaml=yaml, parts=parts) as (process, told):
        asking = threading.Thread(target=lambda: found.append(_try(told)))
        asking.start()
        time.sleep(1.0)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        asking.join(10)
    with Archive(tmp_path / "home") as archive:
        [episode] = archive.episodes(Query(run=told["run"]))
    assert episode.usage.calls == 1
    if finished:
        assert found[0][0] == 200 and episode.failure is None
    else:
        assert episode.failure is not None and episode.failure.reason == "cancelled"


def _try(told: Any) -> tuple[int, Any]:
    try:
        return post(told)
    except OSError as error:
        return 0, str(error)


@pytest.mark.integration
def test_for_a_person_address_and_token_stand_on_stderr_once(tmp_path: Path) -> None:
    workflow = str(tiny_workflow.make(tmp_path))
    command = [sys.executable, "-m", "agentloop", "serve", workflow]
    environment = {**os.environ, "AGENTLOOP_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        lines = [process.stderr.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        said = "".join(lines) + process.stderr.read()
        assert process.wait(20) == 0 and process.stdout.read() == ""
    assert "http://127.0.0.1:" in lines[0] and "store: true" in lines[0]
    assert said.count("token=") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--host", "0.0.0.0"], "`--host 0.0.0.0` is not a loopback address"),
        (["--host", "example.org"], "not a loopback address"),
        (["--set", "serve.consent=maybe"], "serve.consent"),
        (["--set", "serve.canary=2"], "serve.canary"),
        (["--set", "serve.share=0.5"], "unknown key of `serve`"),
        (["--set", "serve.reward=no.such:Part"], "no.such"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    workflow = str(tiny_workflow.make(tmp_path))
    assert run(["serve", workflow, "--home", str(tmp_path / "home"), *options]) == 2
    said = capsys.readouterr().err
    assert why in said and "Traceback" not in said
    assert not (tmp_path / "home").exists()


def test_the_name_of_a_session_that_did_not_agree_is_not_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    episode = Episode(
        id="ep-1", task=Task(id="t", prompt="?"), bundle="b", purpose="serve", run="r", seed=0
    )
    _tell("about my health", episode, logged=False)
    assert "health" not in (said := capsys.readouterr().err) and "not logged" in said
    _tell("agreed", episode, logged=True)
    assert "agreed: ended" in capsys.readouterr().err


def test_a_long_start_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def slow(*_: object) -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(20)
        yield

    monkeypatch.setattr("agentloop.workflows.assemble.assemble", slow)
    started = time.monotonic()
    workflow = str(tiny_workflow.make(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        assert run(["serve", workflow, "--home", str(tmp_path / "home")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10
