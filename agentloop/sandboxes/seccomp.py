"""A filter of system calls: a profile in the JSON of container engines becomes a BPF program.

In: `seccomp.json` with names of calls to refuse (`SCMP_ACT_ERRNO`), all others allowed. Out: the
bytes that `bwrap --seccomp` and `prctl(PR_SET_SECCOMP)` take. The subset: actions `ERRNO` and
`KILL_PROCESS`; comparisons `MASKED_EQ` and `NE` of one argument. Decision: our own assembler,
because a list of forty-odd rules needs two jumps each and libseccomp would be one more library to
find at run time. Only the low 32 bits of an argument are compared: the arguments in question are
ints, of which the kernel reads no more, so the rest would only be a place to hide (CVE-2019-10063).
A call of another architecture, or of x32, ends the process.
"""

from __future__ import annotations

import json
import platform
import struct
from pathlib import Path
from typing import Any

from agentloop.errors import UnknownName, UsageError

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of `syscalls.json`, and the kernel's `AUDIT_ARCH_...`."""
MOST_BYTES = 256 * 1024
"""Of a profile's file."""
_LOAD, _AND, _EQUAL, _LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's `struct seccomp_data`; both machines are little-endian."""
_X32 = 0x40000000
"""Bit of the numbers of x32 calls, which share the architecture of x86-64."""


def read_filter(path: Path, machine: str = platform.machine()) -> bytes:
    """The filter in `path` for `machine`. Raises `UsageError` for a file that is no such profile,
    `UnknownName` for a call that is in no table."""
    try:
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            raise UsageError(f"`{path}` has {len(data)} bytes; a filter has at most {MOST_BYTES}")
        profile = json.loads(data)
        rules = profile["syscalls"]
        if profile["defaultAction"] != "SCMP_ACT_ALLOW":
            raise UsageError(f"`{path}`: `defaultAction` must be `SCMP_ACT_ALLOW`")
        return assemble(rules, machine)
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read ({error.strerror})") from error
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"`{path}` is no filter of system calls: {error!r}"[:300]) from error


def assemble(rules: list[dict[str, Any]], machine: str) -> bytes:
    """The program for `rules`, of which the first that matches a call decides."""
    if machine not in MACHINES:
        raise UsageError(f"no table of system calls for `{machine}`; known: {', '.join(MACHINES)}")
    column, architecture = MACHINES[machine]
    numbers: dict[str, list[int | None]] = json.loads(
        Path(__file__).with_name("syscalls.json").read_text(encoding="utf-8")
    )
    code = [
        _step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]  # fmt: skip
    if machine == "x86_64":
        code += [_step(_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    for rule in rules:
        verdict = _verdict(rule)
        for name in rule["names"]:
            if name not in numbers:
                raise UnknownName("system call", str(name), numbers)
            number = numbers[name][column]
            if number is not None:
                tests = _tests(rule.get("args", []), verdict)
                code += [_step(_EQUAL, number, 0, len(tests)), *tests]
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _tests(arguments: list[dict[str, Any]], verdict: int) -> list[bytes]:
    """What follows when the number is the rule's: give the verdict, or go on with the next rule."""
    if not arguments:
        return [_step(_RETURN, verdict)]
    (one,) = arguments  # several would have to hold together; nothing here needs that
    load = _step(_LOAD, _ARGUMENTS + 8 * int(one["index"]))
    again = _step(_LOAD, _NUMBER)
    if one["op"] == "SCMP_CMP_NE":
        return [load, _step(_EQUAL, one["value"], 1, 0), _step(_RETURN, verdict), again]
    if one["op"] != "SCMP_CMP_MASKED_EQ":
        raise ValueError(f"{one['op']} is not supported")
    mask, value = one["value"], one["valueTwo"]
    return [
        load, _step(_AND, mask), _step(_EQUAL, value, 0, 1), _step(_RETURN, verdict), again,
    ]  # fmt: skip


def _verdict(rule: dict[str, Any]) -> int:
    if rule["action"] == "SCMP_ACT_KILL_PROCESS":
        return _KILL
    if rule["action"] != "SCMP_ACT_ERRNO" or not 0 < rule["errnoRet"] < 4096:
        raise ValueError(f"{rule['action']} is not supported")
    return _ERRNO | int(rule["errnoRet"])


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction (`struct sock_filter`); `yes` and `no` are how many to skip."""
    try:
        return struct.pack("<HBBI", code, yes, no, value)
    except struct.error:
        raise ValueError(f"{value!r} is not within 32 bits") from None
