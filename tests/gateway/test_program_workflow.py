"""Workflows whose agent is a program, from the command to the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_workflow
from gateway_fixtures import needs_node

from agentloop.cli import run
from agentloop.datasets.rows import sft_rows
from agentloop.errors import UsageError
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

AGENT = """\
import json, os, sys, urllib.request
body = {"messages": [{"role": "user", "content": sys.stdin.read()}]}
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head)) as reply:
    print(json.load(reply)["choices"][0]["message"]["content"])
"""


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
