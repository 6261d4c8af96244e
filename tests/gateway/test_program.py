"""Programs of any language as agents: what they are given, what becomes of them, what is logged."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gateway_fixtures import AGENTS, needs_node, needs_node_client, order, python, rollouts

from agentloop.datasets.rows import sft_rows
from agentloop.errors import ModelError, UsageError
from agentloop.gateway.program import Program, resolve_command
from agentloop.gateway.server import Gateway
from agentloop.graphs.plain_tools import PlainTools
from agentloop.graphs.program import program_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import (
    Completion,
    Episode,
    Limits,
    Message,
    Request,
    ToolCall,
    ToolSpec,
)

ASK = """
import json, os, sys, urllib.request
def ask(*messages, **more):
    body = json.dumps({"messages": [{"role": "user", "content": one} for one in messages], **more})
    head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body.encode(), head)) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]
"""


def two_turns(request: Request) -> str:
    return "Yes.\nAnswer: 5" if len(request.messages) > 2 else "It is 5."


def check_two_turns(episode: Episode, system: str = "Be brief.") -> None:
    assert episode.failure is None and episode.answer == "5" and episode.usage.calls == 2
    [trajectory] = episode.trajectories
    assert [node.message.content for node in trajectory.nodes] == [
        system, "What is 2 + 3?", "It is 5.", "Are you sure?", "Yes.\nAnswer: 5",
    ]  # fmt: skip
    assert trajectory.drift == 0
    [row] = sft_rows([episode], system="Be brief.")
    assert row.sampled == (True, False, True) and all(row.segments)
    assert [message.role for message in row.prompt] == ["system", "user"]


@needs_node
def test_a_node_script_without_dependencies_becomes_a_training_row() -> None:
    [episode] = rollouts(["node", "./plain.mjs"], two_turns)
    check_two_turns(episode)


@pytest.mark.integration  # imports that take seconds
def test_a_script_of_openais_client_becomes_a_training_row() -> None:
    [episode] = rollouts([sys.executable, "./sdk_agent.py"], two_turns)
    check_two_turns(episode)


@pytest.mark.integration
@needs_node_client
def test_openais_client_for_node_calls_a_tool_and_reads_a_stream() -> None:
    call = ToolCall(id="c-1", name="add", arguments={"a": 2, "b": 3})

    def reply(request: Request) -> Message | str:
        if request.messages[-1].role == "tool":
            return f"Answer: {request.messages[-1].content}"
        assert [tool.name for tool in request.tools] == ["add"]
        return Message(role="assistant", content="", tool_calls=(call,))

    [episode] = rollouts(["node", "./sdk.mjs"], reply)
    assert episode.failure is None and episode.answer == "5"
    nodes = episode.trajectories[0].nodes
    assert [node.message.role for node in nodes] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert len(sft_rows([episode], system="")) == 1


@pytest.mark.integration  # imports that take seconds
def test_a_langgraph_program_calls_tools_of_a_model_that_has_none_of_its_own() -> None:
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        if request.messages[-1].content.startswith("Output:"):
            return "Answer: 5"
        return 'I add.\n```add\n{"a": 2, "b": 3}\n```'

    command = [sys.executable, "./langgraph_agent.py"]
    [episode] = rollouts(command, reply, native_tools=False)
    assert episode.failure is None and episode.answer == "5"
    nodes = episode.trajectories[0].nodes
    assert [node.message.role for node in nodes] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert nodes[0].message.content.startswith("Be brief.\n\nTools:\n- add: Add two numbers.")
    assert nodes[2].message.content == 'I add.\n```add\n{"a": 2, "b": 3}\n```'
    assert nodes[3].message.content == "Output:\n5"
    assert all(request.tools == () for request in seen)
    assert len(sft_rows([episode], system="")) == 1


def test_what_a_program_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-users-own")
    monkeypatch.setenv("SOME_SECRET", "sk-secret")
    code = (
        "import json, os, sys; print(json.dumps([sys.stdin.read(), os.getcwd(), dict(os.environ),"
        " os.listdir()]))"
    )
    task = "grüße\n" + "x" * 20
    [episode] = rollouts(python(code), lambda request: "unused", attempts=[order(task)])
    text, cwd, environment, files = json.loads(episode.answer or "")
    assert text == task == environment["AGENTLOOP_TASK"]
    assert episode.id in environment["OPENAI_BASE_URL"]
    assert environment["OPENAI_MODEL"] and files == []
    assert not Path(cwd).exists()
    assert "SOME_SECRET" not in environment and "sk-the-users-own" not in str(environment)


def test_a_task_too_long_for_the_environment_comes_on_stdin() -> None:
    code = "import os, sys; print(len(sys.stdin.read()), 'AGENTLOOP_TASK' in os.environ)"
    [episode] = rollouts(python(code), lambda request: "", attempts=[order("x" * 300_000)])
    assert episode.answer == "300000 False"
    [episode] = rollouts(python("print('unread')"), lambda r: "", attempts=[order("x" * 300_000)])
    assert episode.failure is None and episode.answer == "unread"


def test_a_silent_programs_answer_is_the_last_reply() -> None:
    [episode] = rollouts(python(ASK + "ask('a'); ask('b')"), lambda request: "so:\nAnswer: 7")
    assert episode.answer == "7" and episode.usage.calls == 2


def test_only_the_end_of_a_flood_is_kept() -> None:
    code = "import sys\nfor _ in range(40): print('x' * 100_000)\nprint('Answer: 3')"
    started = time.monotonic()
    [episode] = rollouts(python(code), lambda request: "")
    assert episode.answer == "3" and time.monotonic() - started < 10


def test_a_program_that_fails_is_a_fault_and_not_a_result() -> None:
    [episode] = rollouts(python("raise SystemExit('no such luck')"), lambda request: "")
    assert episode.failure is not None and episode.failure.reason == "graph_error"
    assert "status 1: no such luck" in episode.failure.detail


def test_a_program_that_fails_because_its_call_did_fails_for_that_reason() -> None:
    class Down:
        async def complete(self, request: Request) -> Completion:
            raise ModelError("the endpoint is down", reason="model_timeout")

    [episode] = rollouts(python(ASK + "ask('a')"), Down())
    assert episode.failure is not None and episode.failure.reason == "model_timeout"
    assert episode.failure.detail == "the endpoint is down"


def test_a_program_that_says_nothing_after_a_failed_call_has_no_answer() -> None:
    def reply(request: Request) -> str:
        if len(request.messages) > 2:
            raise ModelError("the endpoint is down")
        return "Answer: 7"

    hides = "ask('a')\ntry: ask('a', 'b')\nexcept OSError: pass"
    [episode] = rollouts(python(ASK + hides), reply)
    assert episode.failure is not None and episode.failure.reason == "model_error"
    [episode] = rollouts(python("import sys; print('lost', file=sys.stderr)"), reply)
    assert episode.failure is not None and episode.failure.reason == "graph_error"
    assert "status 0: lost" in episode.failure.detail


def test_a_limit_is_the_agents_own_failure_even_when_it_hides_the_error() -> None:
    loop = "\nfor n in range(5):\n    try: ask(str(n))\n    except OSError: pass\nprint(1)"
    [episode] = rollouts(python(ASK + loop), lambda request: "ok", limits=Limits(turns=2))
    assert episode.failure is not None and episode.failure.reason == "turn_limit"
    assert episode.usage.calls == 2
    dies = "\nfor n in range(5): ask(str(n))"
    [episode] = rollouts(python(ASK + dies), lambda request: "ok", limits=Limits(turns=2))
    assert episode.failure is not None and episode.failure.reason == "turn_limit"


def test_the_deadline_kills_the_program_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    [episode] = rollouts(python(code), lambda request: "", limits=Limits(seconds=1.5))
    assert time.monotonic() - started < 4
    assert episode.failure is not None and episode.failure.reason == "time_limit"
    for pid in pids.read_text().split():
        assert gone(int(pid))


def test_a_child_that_outlives_its_parent_is_killed_too(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "print('Answer: 1')\n"
    )
    started = time.monotonic()
    [episode] = rollouts(python(code), lambda request: "")
    assert episode.answer == "1" and time.monotonic() - started < 3
    assert gone(int(pids.read_text()))


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_many_at_once_are_told_apart() -> None:
    def reply(request: Request) -> str:
        return f"Answer: {request.messages[-1].content}"

    tasks = [order(f"task {n}") for n in range(12)]
    code = ASK + "print(ask(sys.stdin.read()))"
    episodes = rollouts(python(code), reply, attempts=tasks)
    assert [episode.answer for episode in episodes] == [f"task {n}" for n in range(12)]
    assert [episode.id for episode in episodes] == [task.id for task in tasks]


def test_a_cancelled_run_leaves_nothing_running(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    async def main() -> None:
        async with Gateway() as gateway:
            program = Program(resolve_command(tuple(python(code)), AGENTS), gateway)
            run = asyncio.create_task(
                Runner(program_graph(program.drive)).run([order()], model=Scripted(["x"]))
            )
            while not (pid.exists() and pid.read_text()):
                await asyncio.sleep(0.02)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

    asyncio.run(main())
    assert gone(int(pid.read_text()))


KILLED = """
import asyncio, sys
sys.path[:0] = {paths!r}
from gateway_fixtures import rollouts, python
rollouts(python({code!r}), lambda request: "")
"""


@pytest.mark.integration  # a process that starts
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_program_ends_with_a_runtime_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    source = KILLED.format(paths=[str(Path(__file__).parent)], code=code)
    with subprocess.Popen([sys.executable, "-c", source]) as runtime:
        for _ in range(1000):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.02)
        runtime.kill()
    assert gone(int(pid.read_text()))


def test_a_command_that_cannot_work_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"\./nothing\.mjs"):
        resolve_command((sys.executable, "./nothing.mjs"), tmp_path)
    with pytest.raises(UsageError, match="not an executable"):
        resolve_command(("no-such-program-here",), tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "agent").touch(0o755)
    monkeypatch.chdir(tmp_path)  # where the program will not run
    with pytest.raises(UsageError, match="begins with"):
        resolve_command(("bin/agent",), tmp_path)
    assert resolve_command(("./bin/agent",), Path()) == (str(tmp_path / "bin" / "agent"),)


def test_calls_that_the_model_makes_natively_pass_as_they_are() -> None:
    call = ToolCall(id="c-1", name="add", arguments={"a": 1})
    made = Message(role="assistant", content="", tool_calls=(call,))
    seen: list[Request] = []

    def reply(request: Request) -> Message | str:
        seen.append(request)
        return made if len(seen) == 1 else "done"

    async def main() -> None:
        model = PlainTools(Scripted(reply))
        user = Message(role="user", content="go")
        tools = (ToolSpec(name="add", description="", parameters={}),)
        first = await model.complete(Request(messages=(user,), tools=tools))
        assert first.message.tool_calls == (call,)
        result = Message(role="tool", content="2", tool_call_id="c-1")
        await model.complete(Request(messages=(user, made, result), tools=tools))

    asyncio.run(main())
    assert seen[1].messages[-2:] == (made, Message(role="tool", content="2", tool_call_id="c-1"))


def test_a_call_in_plain_text_goes_back_as_the_text_that_was_sampled() -> None:
    said = 'I add.\n```add\n{"a": 1}\n```'
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        return said if len(seen) == 1 else "Answer: 2"

    async def main() -> None:
        model = PlainTools(Scripted(reply))
        user = Message(role="user", content="go")
        schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
        tools = (ToolSpec(name="add", description="Add one.", parameters=schema),)  # type: ignore[arg-type]
        first = await model.complete(Request(messages=(user,), tools=tools))
        [call] = first.message.tool_calls
        assert (call.name, call.arguments, first.finish_reason) == ("add", {"a": 1}, "tool_calls")
        echo = Message(role="assistant", content="", tool_calls=(call,))  # its text dropped
        result = Message(role="tool", content="2", tool_call_id=call.id)
        last = await model.complete(Request(messages=(user, echo, result), tools=tools))
        assert last.message.content == "Answer: 2" and last.finish_reason == "stop"

    asyncio.run(main())
    told = seen[1].messages[0].content
    assert "- add: Add one." in told and '"type": "integer"' in told
    assert [message.content for message in seen[1].messages[2:]] == [said, "Output:\n2"]
    assert not any(request.tools for request in seen)
