"""`run --resume` after a kill: the finished steps of a rollout, side effects included, are not made
again, and its folder of steps is gone once the run is done."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import tiny_workflow

from agentloop.store.log import Log

AGENT = '''\
"""Ask, act on the world, ask again."""

import os
import signal
from pathlib import Path

import agentloop
from langgraph.graph import END, START, MessagesState, StateGraph

HERE = Path(__file__).parent


def ask(state):
    return {"messages": [agentloop.chat_model().invoke(state["messages"])]}


def act(state):
    with (HERE / "effects.txt").open("a") as file:
        file.write(state["messages"][0].content + "\\n")
    return {}


def again(state):
    if "11" in state["messages"][0].content and not (HERE / "killed").exists():
        (HERE / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(state)


builder = StateGraph(MessagesState)
for name, node in (("ask", ask), ("act", act), ("again", again)):
    builder.add_node(name, node)
for one, other in ((START, "ask"), ("ask", "act"), ("act", "again"), ("again", END)):
    builder.add_edge(one, other)
graph = builder.compile()
'''
PARTS = """\
from pathlib import Path


def replies(request):
    with (Path(__file__).parent / "calls.txt").open("a") as file:
        file.write(request.messages[-1].content + "\\n")
    return "Answer: 42"
"""


def agentloop(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agentloop", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML.replace("tools: [python]\n", "graph: ./agent.py:graph\n")
    folder = tiny_workflow.make(tmp_path, yaml=yaml + "concurrency: 1\n", parts=PARTS)
    (folder / "agent.py").write_text(AGENT)
    home = tmp_path / "home"
    where = ("--workspace", str(tmp_path), "--home", str(home))
    run = ("run", "tiny", "--n", "24", "--json", *where)

    killed = agentloop(*run)
    assert killed.returncode == -9
    [kept] = (home / "checkpoints").iterdir()
    with closing(Log(home / "log.db")) as log:
        token = log.lease(f"run/{kept.name}", "somebody", 60)  # as a run does that is at work
        beside = agentloop(*run, "--resume")
        assert beside.returncode == 1 and "held by somebody" in beside.stderr
        assert "Traceback" not in beside.stderr
        log.release(f"run/{kept.name}", token)

    other = agentloop("run", "tiny", "--n", "3", "--resume", *where)
    assert other.returncode == 2 and "repeat its options" in other.stderr
    resumed = agentloop(*run, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout)
    assert told["run"] == kept.name
    assert told["cost"]["unconfirmed"]["killed"] == 1, "what it had just asked is in no count"
    effects = (folder / "effects.txt").read_text().splitlines()
    assert len(effects) == len(set(effects)) == 24
    assert len((folder / "calls.txt").read_text().splitlines()) == 48
    assert not kept.exists()

    nothing = agentloop(*run, "--resume")
    assert nothing.returncode == 2 and "no unfinished run" in nothing.stderr
