"""Filters of system calls: what the kernel does with them, and what is no filter."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UnknownName, UsageError
from agentloop.sandboxes.seccomp import MACHINES, assemble, read_filter

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("sandboxes/*/seccomp.json"))
ERRNO = {"action": "SCMP_ACT_ERRNO", "errnoRet": 1}


def verdict(program: bytes, number: int, *arguments: int, machine: str = "x86_64") -> int:
    """What a filter returns for a call, by the rules of classic BPF."""
    whole = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, MACHINES[machine][1], 0, *whole)
    steps = list(struct.iter_unpack("<HBBI", program))
    value = at = 0
    while True:
        code, yes, no, constant = steps[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            value = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x54:
            value &= constant
        else:
            at += yes if {0x15: value == constant, 0x35: value >= constant}[code] else no


def masked(index: int, mask: int, value: int) -> list[dict[str, Any]]:
    return [{"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]


def test_a_filter_decides() -> None:
    rules = [
        {"names": ["ptrace", "bpf"], **ERRNO},
        {"names": ["clone"], **ERRNO, "args": masked(0, 0x10000000, 0x10000000)},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}]},
        {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
    ]  # fmt: skip
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    program = assemble(rules, "x86_64")
    assert verdict(program, 39) == allow  # getpid
    assert verdict(program, 101) == verdict(program, 321) == refuse
    assert verdict(program, 56, 0x11) == allow and verdict(program, 56, 0x10000011) == refuse
    assert verdict(program, 41, 1) == allow and verdict(program, 41, 2) == 0x00050000 | 97
    assert verdict(program, 41, 2 | 1 << 32) == 0x00050000 | 97  # the kernel reads the low half
    assert verdict(program, 169) == kill
    assert verdict(program, 39 | 0x40000000) == kill  # x32
    assert verdict(program, 39, machine="aarch64") == kill
    other = assemble(rules, "aarch64")
    assert verdict(other, 117, machine="aarch64") == refuse
    assert verdict(other, 39, machine="x86_64") == kill


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_shipped_filters(path: Path, machine: str) -> None:
    program = read_filter(path, machine)
    assert len(program) < 8 * 4096  # the kernel's limit
    assert verdict(program, 435, machine=machine) == 0x00050000 | 38  # clone3: not there
    clone, socket = (56, 41) if machine == "x86_64" else (220, 198)
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, clone, bit | 17, machine=machine) == 0x00050001
    for family in (2, 10, 16, 17, 38, 40, 44):
        assert verdict(program, socket, family, machine=machine) == 0x00050000 | 97


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine not in MACHINES, reason="Linux")
def test_the_kernel_agrees(tmp_path: Path) -> None:
    filter = tmp_path / "filter"
    rules = [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]
    filter.write_bytes(assemble(rules, os.uname().machine))
    code = f"""
import ctypes, os
data = open({str(filter)!r}, "rb").read()
libc = ctypes.CDLL(None, use_errno=True)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]
filter = Filter(len(data) // 8, data)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(filter)) == 0
print(libc.sethostname(b"", 0), ctypes.get_errno(), os.getpid() > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "-1 71 True\n", done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"defaultAction": "SCMP_ACT_ERRNO"}, "defaultAction"),
        ({"syscalls": [{"names": ["ptrase"], **ERRNO}]}, "did you mean `ptrace`"),
        ({"syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_TRACE"}]}, "not supported"),
        ({"syscalls": [{"names": ["bpf"], **ERRNO, "errnoRet": 0}]}, "not supported"),
        ({"syscalls": [{"names": ["bpf"], **ERRNO, "args": masked(0, 1 << 40, 0)}]}, "32 bits"),
        ({"syscalls": [{"names": ["bpf"], **ERRNO, "args": masked(0, 1, 1) * 2}]}, "no filter"),
        ({"syscalls": 5}, "no filter"),
        ({"syscalls": [[]]}, "no filter"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []} | change))
    with pytest.raises(UsageError, match=says):
        read_filter(path, "x86_64")
    with pytest.raises(UsageError, match="cannot be read"):
        read_filter(tmp_path / "none")
    with pytest.raises(UsageError, match="no table"):
        assemble([], "vax")


@given(text=st.text(max_size=60))
def test_any_text_ends_in_a_filter_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises((UsageError, UnknownName)):
        read_filter(path, "x86_64")


def test_the_numbers_are_this_kernels() -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of another machine")
    libc = ctypes.CDLL(None, use_errno=True)
    table = json.loads((ROOT / "agentloop/sandboxes/syscalls.json").read_text())
    assert len(table) > 80
    # Descriptors that are none: a call of this number is there and says so.
    for name in ("setns", "fchmod", "fchown", "pidfd_getfd"):
        ctypes.set_errno(0)
        assert libc.syscall(table[name][0], -1, 0, 0) == -1
        assert ctypes.get_errno() in (errno.EBADF, errno.EINVAL, errno.EPERM), name
