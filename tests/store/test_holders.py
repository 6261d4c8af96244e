"""Who holds a lease: told apart from others, and known to have ended when it has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentloop.store import leases
from agentloop.store.leases import LeaseHeld, gone, holder
from agentloop.store.log import Log

SAYS = "from agentloop.store.leases import holder; print(holder(), flush=True); input()"


@pytest.fixture
def other() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_holder_is_gone_when_its_process_is(other: subprocess.Popen[str]) -> None:
    name = said(other)
    assert not gone(name) and not gone(holder()) and name != holder()
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody asked how
    assert gone(name)
    other.wait()
    assert gone(name)


def test_another_process_under_its_number_is_not_it() -> None:
    node, space, pid, start = holder().split(":")
    assert gone(f"{node}:{space}:{pid}:{int(start) - 1}")


def test_nobody_can_tell_of_another_container_or_machine() -> None:
    node, space, _, start = holder().split(":")
    nobody = 2**22 + 1  # no process has it: the kernel's greatest is 2**22
    assert gone(f"{node}:{space}:{nobody}:{start}")
    assert not gone(f"{node}:{int(space) + 1}:{nobody}:{start}")
    assert not gone(f"other:{space}:{nobody}:{start}")
    assert not gone("one") and not gone(f"{node}:{nobody}")


def test_where_the_system_does_not_say_a_number_must_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, space, pid, start = holder().split(":")
    monkeypatch.setattr(leases, "_start", lambda pid: "")
    assert holder() == f"{node}:{space}:{pid}:" and not gone(f"{node}:{space}:{pid}:{start}")


def test_a_person_is_told_the_process(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    log.lease("cycle/w", holder(), 30)
    with pytest.raises(LeaseHeld, match=f"held by process {os.getpid()} of {os.uname().nodename} "):
        log.lease("cycle/w", "two", 30)
    log.close()
