"""The sandbox of containers: what it is made with, its stream, its time, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from docker_engine import ENGINE, WHY, needs_engine
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import MissingDependency, SandboxError, UsageError
from agentloop.records import SandboxResult
from agentloop.sandboxes import docker as backend
from agentloop.sandboxes.docker import HARDENED, LABEL, WARM, WITHOUT, DockerSandbox, _Wire
from agentloop.sandboxes.profile import Profile, read_profile

PROFILE = read_profile(Path(__file__).parents[2] / "sandboxes/docker/profile.yaml")


def box(*without: str, **limits: Any) -> DockerSandbox:
    return DockerSandbox(Profile(**PROFILE.model_dump() | limits), without)


def run(sandbox: DockerSandbox, *codes: str) -> list[SandboxResult]:
    async def main() -> list[SandboxResult]:
        try:
            return [await sandbox.run(code) for code in codes]
        finally:
            await sandbox.close()

    return asyncio.run(main())


def containers(**filters: str) -> list[Any]:
    import docker

    client = docker.DockerClient.from_env()
    try:
        return client.containers.list(ignore_removed=True, all=True, filters=filters)
    finally:
        client.close()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    with pytest.raises(UsageError, match="needs a filter"):
        DockerSandbox(Profile(backend="docker"))
    with pytest.raises(UsageError, match="unknown controls"):
        box("secomp")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(UsageError, match="needs an engine on `unix://`"):
        box()
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MissingDependency, match=r"agentloop\[docker\]"):
        box()


def test_an_engine_that_is_not_there_is_the_sandboxs_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxError, match="the sandbox did not start"):
        run(box(), "1")


def test_no_profile_weakens_a_container() -> None:
    pytest.importorskip("docker")
    settings = box(memory_mb=65536, pids=32768, cpu=1024, image="x", runtime="runsc")._settings()
    assert {**settings, **HARDENED} == settings
    assert settings["security_opt"][0] == "no-new-privileges" and len(settings["security_opt"]) == 2
    assert "SCMP_ACT_ERRNO" in settings["security_opt"][1]
    asked = {"privileged", "cap_add", "devices", "volumes", "mounts", "pid_mode", "userns_mode"}
    assert not asked & set(settings)
    assert settings["memswap_limit"] == settings["mem_limit"] > 0 < settings["pids_limit"]
    for control in WITHOUT:
        assert box(control)._settings() != box()._settings(), control


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=8),
    st.lists(st.integers(1, 40), min_size=1),
    st.integers(0, 20),
)
def test_a_stream_is_taken_apart(parts: Any, cuts: list[int], lost: int) -> None:
    """However the engine's bytes arrive, and wherever they end."""
    sent = b"".join(
        bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for stream, text in parts
    )
    sent = sent[: len(sent) - lost] if lost else sent

    async def main() -> tuple[bytes, bytes]:
        ours, theirs = socket.socketpair()
        wire = await _Wire.over(ours, 10**6)
        place = 0
        for cut in cuts * len(sent):
            theirs.sendall(sent[place : place + cut])
            place += cut
            if place >= len(sent):
                break
        theirs.close()
        stdout = await wire.stdout.read()
        stderr = wire.stderr.text().encode()
        await wire.close()
        return stdout, stderr

    stdout, stderr = asyncio.run(main())
    whole = [b"".join(text for stream, text in parts if stream == kind) for kind in (1, 2)]
    assert whole[0].startswith(stdout) and (lost or stdout == whole[0])
    assert lost or stderr == whole[1].decode(errors="replace").encode()


def test_where_it_counts_there_is_an_engine() -> None:
    """In `.ci/run` nothing below may be skipped."""
    wanted = os.environ.get("CI") == "true" and "NO_DOCKER_ENGINE" in os.environ
    assert ENGINE or not wanted, f"no Docker engine: {WHY}"


@pytest.mark.integration
@needs_engine
def test_each_run_has_a_container_of_its_own_that_goes() -> None:
    before = len(containers())
    sandbox = box()

    async def main() -> list[SandboxResult]:
        done = [await sandbox.run("open('x', 'w').close()\nopen('/tmp/x', 'w').close()")]
        done.append(await sandbox.run("import os\n[os.getuid(), os.listdir(), os.listdir('/tmp')]"))
        assert len(containers()) <= before + WARM + 1
        done += await asyncio.gather(*(sandbox.run(f"{n} * 10") for n in range(6)))
        await sandbox.close()
        return done

    first, second, *others = asyncio.run(main())
    assert first.returncode == 0 and second.stdout == "[65534, [], []]\n"
    assert [one.stdout for one in others] == [f"{n * 10}\n" for n in range(6)]
    assert len(containers()) == before


@pytest.mark.integration
@needs_engine
def test_limits_hold_and_the_code_is_blamed() -> None:
    fork = "import os, time\nfor _ in range(4):\n    if not os.fork():\n        "
    memory, time_out, flood, killed, disk = run(
        box(seconds=2, memory_mb=96, disk_mb=8),
        fork + "x = b'x' * 50 * 2**20; time.sleep(9)\ntime.sleep(1)\nos._exit(9)",
        "import time\nprint('began', flush=True)\ntime.sleep(60)",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "import os\nos.kill(os.getpid(), 9)",
        "open('x', 'wb').write(bytes(2**24))",
    )
    assert memory.error == "MemoryError: out of memory" and not memory.timed_out
    assert time_out.timed_out and time_out.stdout == "began\n" and time_out.returncode is None
    assert flood.truncated and len(flood.stdout) < 70000 and "too many" in flood.error
    assert killed.error == "ended by SIGKILL" and killed.returncode == 137
    assert disk.error.startswith("OSError")


@pytest.mark.integration
@needs_engine
def test_what_a_killed_process_left_is_swept() -> None:
    code = """
import asyncio, sys
from pathlib import Path
from agentloop.sandboxes.profile import read_profile
from agentloop.sandboxes.docker import DockerSandbox
sandbox = DockerSandbox(read_profile(Path(sys.argv[1])))
asyncio.run(sandbox.run("1"))
for future in sandbox._warm:
    future.result()
print("ready", flush=True)
asyncio.run(sandbox.run("import time\\nwhile True: time.sleep(1)"))
"""
    path = Path(__file__).parents[2] / "sandboxes/docker/profile.yaml"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        owner = backend.owner(process.pid)
        assert len(containers(label=f"{LABEL}={owner}")) >= 1
        os.kill(process.pid, signal.SIGKILL)
    assert run(box(), "1 + 1")[0].stdout == "2\n"
    assert not containers(label=f"{LABEL}={owner}")


@pytest.mark.integration
@needs_engine
@pytest.mark.skipif(not shutil.which("docker"), reason="the docker command is missing")
def test_a_warm_run_is_no_slower_than_a_bare_exec() -> None:
    """`docker exec` of the same interpreter in a container that runs; the bar is 1.3 times it."""
    import docker

    client, sandbox = docker.DockerClient.from_env(), box()
    settings = sandbox._settings()
    python = settings.pop("entrypoint")[0]
    sleep = [python, "-c", "import time; time.sleep(300)"]
    image = backend.host_image(client)
    idle = client.containers.run(image, entrypoint=sleep, detach=True, **settings)
    bare = ["docker", "exec", idle.id, python, "-I", "-S", "-c", "print(1)"]

    async def both(times: int) -> tuple[list[float], list[float]]:
        await sandbox.run("1")
        ours, theirs = [], []
        for _ in range(times):
            for future in [*sandbox._warm, *sandbox._going]:
                await asyncio.wrap_future(future)
            began = time.perf_counter()
            assert (await sandbox.run("1")).stdout == "1\n"
            ours.append(time.perf_counter() - began)
            for future in [*sandbox._warm, *sandbox._going]:
                await asyncio.wrap_future(future)
            began = time.perf_counter()
            assert (await asyncio.to_thread(subprocess.check_output, bare)) == b"1\n"
            theirs.append(time.perf_counter() - began)
        await sandbox.close()
        return ours, theirs

    try:
        ours, theirs = map(statistics.median, asyncio.run(both(8)))
    finally:
        idle.remove(force=True)
        client.close()
    print(f"warm run {ours * 1e3:.0f} ms, bare docker exec {theirs * 1e3:.0f} ms")
    assert ours <= 1.3 * theirs
