"""The life of a vLLM server: the real worker script around a stand-in for the `vllm` package."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from vllm_stand_in import interpreter

from agentloop.cli import run
from agentloop.errors import MissingDependency, ServerError, UsageError
from agentloop.models.connect import ModelSpec, connect, describe, parse
from agentloop.records import Endpoint
from agentloop.serving.vllm import VllmServer, find_python


@pytest.fixture
def python(tmp_path):
    """`(mode) -> interpreter`: one without any installed package, but with the stand-in."""
    return partial(interpreter, tmp_path)


@pytest.fixture
def adapter(tmp_path):
    """`(name, weights) -> folder`."""

    def make(name, weights=b"1"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        return folder

    return make


def seen(tmp_path):
    return json.loads((tmp_path / "model" / "seen.json").read_text())


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_it_starts_serves_policies_and_ends_with_all_that_it_started(
    python, adapter, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody")

    async def go():
        # what is reachable from where is not for options to say
        options = ("--max-loras", "2", "--host", "0.0.0.0", "--port", "1")
        server = VllmServer(tmp_path / "model", tmp_path / "logs", python=python(), options=options)
        assert not await server.healthy()
        endpoint = await server.start()
        assert await server.start() == endpoint and await server.healthy()
        assert endpoint.model == "base" and endpoint.base_url.startswith("http://127.0.0.1:")
        await asyncio.gather(*(server.load_policy("red", adapter("red")) for _ in range(3)))
        await server.load_policy("red", adapter("red"))
        await server.load_policy("blue", adapter("blue", b"2"))
        assert server.policies == {"red", "blue"}
        news = [server.load_policy("new", adapter(f"new{n}", b"%d" % n)) for n in range(2)]
        first, second = await asyncio.gather(*news, return_exceptions=True)
        assert first is None and isinstance(second, ServerError)  # one name, two weights
        await server.unload_policy("new")
        with pytest.raises(ServerError, match="already stands for other weights"):
            await server.load_policy("red", adapter("other", b"3"))
        await server.unload_policy("red")
        with pytest.raises(ServerError, match="other weights"):  # its prefixes are still cached
            await server.load_policy("red", adapter("other", b"3"))
        await server.load_policy("red", adapter("red"))
        root = endpoint.base_url.removesuffix("/v1")
        async with aiohttp.ClientSession() as session, session.get(root + "/health") as answer:
            assert (await answer.json(content_type=None))["loaded"] == ["blue", "red"]
        await server.stop()
        await server.stop()
        assert server.pid is None and not await server.healthy() and not server.policies
        with pytest.raises(ServerError, match="does not run; start it first"):
            await server.load_policy("red", adapter("red"))
        return endpoint

    endpoint = asyncio.run(go())
    told = seen(tmp_path)
    assert gone(told["helper"])
    assert told["env"]["VLLM_API_KEY"] == endpoint.token and "OPENAI_API_KEY" not in told["env"]
    assert endpoint.token not in json.dumps(told["flags"])
    assert told["env"]["HF_HUB_OFFLINE"] == told["env"]["VLLM_NO_USAGE_STATS"] == "1"
    assert told["flags"]["host"] == "127.0.0.1" and told["flags"]["enable_prefix_caching"]
    assert told["flags"]["max_loras"] == "2"
    assert told["flags"]["logprobs_mode"] == "processed_logprobs"
    assert told["middleware"] == "agentloop.serving.vllm_chat"
    assert not any("site-packages" in entry for entry in told["path"])
    assert "a line that vLLM prints" in (tmp_path / "logs" / "vllm.log").read_text()


def test_a_crash_is_one_sentence_with_the_end_of_the_log(python, tmp_path):
    server = VllmServer(tmp_path / "model", tmp_path, python=python("crash"))
    with pytest.raises(ServerError, match=r"vLLM server did not start: [\s\S]*no memory for the"):
        asyncio.run(server.start())
    assert gone(seen(tmp_path)["helper"])


def test_a_failed_start_tells_of_itself_alone(python, tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text("a line of an earlier run\n")
    server = VllmServer(tmp_path / "model", tmp_path, python=python("crash"))
    with pytest.raises(ServerError) as told:
        asyncio.run(server.start())
    assert "no memory" in str(told.value) and "earlier run" not in str(told.value)
    assert log.read_text().startswith("a line of an earlier run\n")
    nowhere = VllmServer(tmp_path / "model", tmp_path, python=tmp_path / "none")
    with pytest.raises(ServerError, match=r"vLLM server cannot be started: .*No such file"):
        asyncio.run(nowhere.start())
    asyncio.run(nowhere.stop())


def test_a_start_has_a_deadline(python, tmp_path):
    server = VllmServer(tmp_path / "model", tmp_path, python=python("hang"))
    server.start_seconds = 1.5
    started = time.monotonic()
    with pytest.raises(ServerError, match="did not answer within 2 s"):
        asyncio.run(server.start())
    assert time.monotonic() - started < 10 and gone(seen(tmp_path)["helper"])


def test_a_killed_server_leaves_no_helper_and_can_be_started_again(python, tmp_path, adapter):
    async def go():
        server = VllmServer(tmp_path / "model", tmp_path, python=python())
        first = await server.start()
        await server.load_policy("red", adapter("red"))
        helper = seen(tmp_path)["helper"]
        os.kill(server.pid, signal.SIGKILL)
        while server.pid is not None:
            await asyncio.sleep(0.01)
        assert not await server.healthy()
        await asyncio.sleep(0.1)
        assert gone(helper)
        second = await server.start()
        assert second.token != first.token and await server.healthy()
        await server.load_policy("red", adapter("red", b"new"))  # a new process has no old cache
        await server.stop()

    asyncio.run(go())


def test_it_ends_with_its_parent(python, tmp_path):
    code = f"""
    import asyncio, os
    from pathlib import Path
    from agentloop.serving.vllm import VllmServer
    async def go():
        server = VllmServer(Path({str(tmp_path / "model")!r}), Path({str(tmp_path)!r}),
                            python=Path({str(python())!r}))
        await server.start()
        print(server.pid, flush=True)
        os._exit(9)
    asyncio.run(go())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    assert gone(int(done.stdout))
    assert gone(seen(tmp_path)["helper"])


def test_vllm_is_a_model_like_the_embedded_one():
    assert parse("vllm", {}) == ModelSpec(kind="vllm")
    assert parse("vllm:/a/b", {}).path == "/a/b"
    assert parse("vllm", {}).local and describe("vllm", {})["host"] == "here"
    with pytest.raises(UsageError, match=r"vllm\[:DIR\]"):
        parse("vllm:", {})
    with pytest.raises(UsageError, match="vllm model is not started"):
        connect("vllm")
    endpoint = Endpoint(base_url="http://127.0.0.1:1/v1", token="t", model="base")
    assert connect("vllm", endpoint=endpoint).extensions


def test_which_interpreter(tmp_path):
    with pytest.raises(MissingDependency, match="make vllm"):
        find_python([tmp_path], {})
    with pytest.raises(UsageError, match="no file"):
        find_python([tmp_path], {"AGENTLOOP_VLLM_PYTHON": str(tmp_path / "none")})
    mine = tmp_path / ".venv-vllm" / "bin" / "python"
    mine.parent.mkdir(parents=True)
    mine.symlink_to(sys.executable)
    assert find_python([tmp_path / "other", tmp_path], {}) == mine  # the link, not its target
    given = {"AGENTLOOP_VLLM_PYTHON": sys.executable}
    assert find_python([tmp_path], given) == Path(sys.executable)


def test_a_wrong_interpreter_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setenv("AGENTLOOP_VLLM_PYTHON", "/no/python")
    home = tmp_path / "home"
    assert run(["run", "quickstart", "--model", f"vllm:{tmp_path}/model", "--home", str(home)]) == 2
    assert "AGENTLOOP_VLLM_PYTHON" in capsys.readouterr().err and not home.exists()
