"""Sessions of a person's own agents, and workflows whose agent is a program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tiny_workflow
from gateway_fixtures import needs_node

from agentloop.cli import run
from agentloop.datasets.rows import sft_rows
from agentloop.errors import StoreError, UsageError
from agentloop.records import Episode
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workflows.sessions import Sessions
from agentloop.workspace import Workspace

ASK = {"messages": [{"role": "user", "content": "Multiply 11 by 61."}]}
AGENT = """\
import json, os, sys, urllib.request
body = {"messages": [{"role": "user", "content": sys.stdin.read()}]}
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head)) as reply:
    print(json.load(reply)["choices"][0]["message"]["content"])
"""


class Desk:
    """Open sessions of the tiny workflow, and what ended."""

    def __init__(self, sessions: Sessions, archive: Archive, client: aiohttp.ClientSession) -> None:
        self.sessions, self.archive, self.client = sessions, archive, client
        self.ended: list[tuple[str, Episode]] = []

    async def send(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        token = {"Authorization": f"Bearer {self.sessions.endpoint('x').token}"}
        async with self.client.request(method, url, json=body, headers=token) as answer:
            return answer.status, await answer.json()

    async def ask(self, name: str, body: Any = ASK) -> tuple[int, Any]:
        url = f"{self.sessions.endpoint(name).base_url}/chat/completions"
        return await self.send("POST", url, body)

    async def end(self, name: str, body: Any = None) -> tuple[int, Any]:
        url = self.sessions.endpoint(name).base_url.removesuffix("/v1")
        return await self.send("DELETE", url, body)


@asynccontextmanager
async def desk(
    root: Path, *, idle: float = 30, yaml: str = tiny_workflow.YAML
) -> AsyncIterator[Desk]:
    folder = tiny_workflow.make(root, yaml=yaml)
    space = Workspace.find(root)
    loaded = load(str(folder), space)
    home = root / "home"
    home.mkdir()
    with Archive(home) as archive:
        options = Options(run="run-gateway", seed=0, workspace=space, home=home)
        ended: list[tuple[str, Episode]] = []

        def tell(name: str, episode: Episode) -> None:
            ended.append((name, episode))

        async with (
            assemble(loaded, archive, options) as kit,
            aiohttp.ClientSession() as client,
            Sessions(kit.bench, port=0, idle=idle, tell=tell) as sessions,
        ):
            made = Desk(sessions, archive, client)
            made.ended = ended
            yield made


def test_a_session_gets_the_bundle_and_is_logged_with_the_clients_score(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            status, body = await one.ask("me")
            assert status == 200 and body["choices"][0]["message"]["content"] == "Answer: 42"
            status, told = await one.end("me", {"score": 1})
            assert status == 200 and told["calls"] == 1 and told["failure"] is None
            assert told["answer"] == "42"
            [episode] = one.archive.episodes(Query(run="run-gateway"))
            assert episode.id == told["episode"] and episode.purpose == "serve"
            assert episode.task.prompt == "Multiply 11 by 61."
            assert episode.score is not None and episode.score.value == 1.0 and episode.success
            [trajectory] = episode.trajectories
            assert trajectory.nodes[0].message.content == "Solve the task."
            assert len(sft_rows([episode], system="Solve the task.")) == 1
            assert (await one.end("me"))[0] == 404

    asyncio.run(main())


def test_names_are_sessions_of_their_own_and_can_be_used_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:
            answers = await asyncio.gather(*(one.ask(name) for name in ("a", "a", "b", "b", "a")))
            assert [status for status, _ in answers] == [200] * 5
            assert (await one.end("a"))[1]["calls"] == 3
            assert (await one.ask("a"))[0] == 200
            for bad in ({"score": 2}, {"score": "good"}, ["x"]):
                assert (await one.end("a", bad))[0] == 400
            assert (await one.end("a"))[1]["calls"] == 1
            assert (await one.end("b"))[1]["calls"] == 2
            episodes = one.archive.episodes(Query(run="run-gateway"))
            assert len({episode.id for episode in episodes}) == 3
            assert all(episode.score is None for episode in episodes)

    asyncio.run(main())


def test_silence_a_limit_and_the_servers_end_all_log_the_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path, idle=0.3) as one:
            ended = one.ended
            await one.ask("silent")
            for _ in range(100):
                if ended:
                    break
                await asyncio.sleep(0.02)
            assert [(name, episode.failure) for name, episode in ended] == [("silent", None)]
            statuses = [(await one.ask("greedy"))[0] for _ in range(5)]
            assert statuses == [200, 200, 200, 200, 429]  # limits: {turns: 4}
            assert (await one.end("greedy"))[1]["failure"] == "turn_limit"
            await one.ask("left open")
            del ended[:]
        assert [name for name, _ in ended] == ["left open"]

    asyncio.run(main())
    with Archive(tmp_path / "home") as archive:
        assert len(archive.episodes(Query(run="run-gateway"))) == 3


def test_a_spent_budget_is_told_and_logged(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML + "budget: {tokens: 1}\n"

    async def main() -> None:
        async with desk(tmp_path, yaml=yaml) as one:
            status, body = await one.ask("me")
            while status == 200:
                status, body = await one.ask("me")
            assert status == 429 and body["error"]["code"] == "insufficient_quota"
            assert (await one.end("me"))[1]["failure"] == "budget"

    asyncio.run(main())


def test_no_more_sessions_than_the_budget_has_rollouts(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML + "budget: {rollouts: 2}\n"

    async def main() -> None:
        async with desk(tmp_path, yaml=yaml) as one:
            assert (await one.ask("a"))[0] == 200
            await one.end("a")
            assert (await one.ask("b"))[0] == 200
            status, body = await one.ask("c")
            assert (status, body["error"]["code"]) == (429, "insufficient_quota")
            assert (await one.ask("b"))[0] == 200  # one that has begun goes on
            await one.end("b")
            assert (await one.ask("c"))[0] == 429
            assert len(one.archive.episodes(Query(run="run-gateway"))) == 2

    asyncio.run(main())


def test_no_session_begins_while_the_gateway_stops(tmp_path: Path) -> None:
    async def main() -> tuple[int, Any]:
        async with desk(tmp_path) as one:
            add = one.archive.add_episodes

            async def slow(*given: Any, **named: Any) -> None:
                await asyncio.sleep(0.3)
                await add(*given, **named)

            async def late() -> tuple[int, Any]:
                await asyncio.sleep(0.1)
                return await one.ask("late")

            await one.ask("open")
            one.archive.add_episodes = slow  # type: ignore[method-assign]
            asked = asyncio.create_task(late())
        return await asked

    status, body = asyncio.run(main())
    assert (status, body["error"]["code"]) == (410, "rollout_over")
    with Archive(tmp_path / "home") as archive:
        assert len(archive.episodes(Query(run="run-gateway"))) == 1


def test_a_session_that_cannot_be_logged_at_the_end_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(tmp_path) as one:

            async def broken(*given: Any, **named: Any) -> None:
                raise StoreError("disk full")

            await one.ask("open")
            one.archive.add_episodes = broken  # type: ignore[method-assign]

    with pytest.raises(StoreError, match="disk full"):
        asyncio.run(main())


@pytest.mark.integration  # a process that starts
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    workflow = str(tiny_workflow.make(tmp_path))
    command = [sys.executable, "-m", "agentloop", "gateway", workflow, "--json"]
    environment = {**os.environ, "AGENTLOOP_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        told = json.loads(process.stdout.readline())
        url = told["base_url"].replace("/NAME/", "/me/") + "/chat/completions"
        head = {"Authorization": f"Bearer {told['api_key']}"}
        request = urllib.request.Request(url, json.dumps(ASK).encode(), head)
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "Answer: 42"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "me: ended after 1 calls" in process.stderr.read()
    with Archive(tmp_path / "home") as archive:
        assert len(archive.episodes(Query(run=told["run"]))) == 1


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
        assert run(["gateway", workflow, "--home", str(tmp_path / "home")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10


# --- a workflow whose agent is a program ---


def program_workflow(root: Path, command: str, name: str, text: str) -> str:
    yaml = tiny_workflow.YAML.replace("tools: [python]\n", f"command: {command}\n")
    folder = tiny_workflow.make(root, yaml=yaml)
    (folder / name).write_text(text)
    return str(folder)


def test_a_workflow_may_name_a_program_instead_of_a_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = json.dumps([sys.executable, "./agent.py"])
    workflow = program_workflow(tmp_path, command, "agent.py", AGENT)
    home = str(tmp_path / "home")
    assert run(["run", workflow, "--n", "4", "--home", home, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == 4 and "graph_error" not in report["by_reason"]
    with Archive(Path(home)) as archive:
        episodes = archive.episodes(Query(run=report["run"]))
    assert len(episodes) == 4 and all(episode.usage.calls == 1 for episode in episodes)
    assert all(len(sft_rows([episode], system="")) == 1 for episode in episodes)


@needs_node
def test_a_node_agent_in_a_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (Path(__file__).parent / "agents" / "plain.mjs").read_text()
    source = source.replace("Are you sure?", "Multiply 3 by 4.")
    workflow = program_workflow(tmp_path, "[node, ./agent.mjs]", "agent.mjs", source)
    home = str(tmp_path / "home")
    assert run(["run", workflow, "--n", "2", "--home", home, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    with Archive(Path(home)) as archive:
        episodes = archive.episodes(Query(run=report["run"]))
    assert [episode.usage.calls for episode in episodes] == [2, 2]
    assert all(episode.failure is None for episode in episodes)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("command: [node, ./agent.mjs]\ngraph: react\n", "two agents"),
        ("command: [node, ./agent.mjs]\ntools: [python]\n", "brings its own"),
        ("command: [no-such-program-here]\n", "not an executable"),
        ("command: [sh, ./nothing.sh]\n", "nothing.sh"),
    ],
)
def test_a_wrong_command_is_one_sentence(tmp_path: Path, lines: str, match: str) -> None:
    yaml = tiny_workflow.YAML.replace("tools: [python]\n", lines)
    folder = tiny_workflow.make(tmp_path, yaml=yaml)
    with pytest.raises(UsageError, match=match):
        load(str(folder), Workspace.find(tmp_path)).check()


def test_the_programs_source_decides_the_hash_of_a_workflow(tmp_path: Path) -> None:
    command = json.dumps([sys.executable, "./agent.txt"])
    workflow = Path(program_workflow(tmp_path, command, "agent.txt", "one"))
    space = Workspace.find(tmp_path)
    before = load(str(workflow), space).digest()
    (workflow / "agent.txt").write_text("two")
    assert load(str(workflow), space).digest() != before
