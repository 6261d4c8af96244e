"""A launcher that takes rights from itself for good and then becomes another program.

    python -I -S -B -c SOURCE FILTER UID FOLDER PATH... -- COMMAND...

It may read `PATH...` and its own entry of `/proc`, write in `FOLDER` (the working folder) and to
`/dev/null`, and nothing else; it cannot reach other processes' sockets or signal them; `UID` (0
keeps the user) has no capabilities; `FILTER` is a descriptor of a filter of system calls. Landlock
rules, privileges and filters are inherited and cannot be taken back, so what it becomes has no
more. It needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

ABI = 6
"""Of Landlock (Linux 6.12): the first that holds back signals and abstract sockets."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
ALL_FILES = (1 << 16) - 1
DEVICES = 1 << 6 | 1 << 11 | 1 << 15
"""Making character and block devices, and steering devices."""
CREATE, ADD, RESTRICT = 444, 445, 446
"""System calls, the same number on every machine."""
CAPSET = {"x86_64": 126, "aarch64": 91}


def main(arguments: list[str]) -> None:
    """Take the rights away and become the command."""
    filter, uid, folder, *rest = arguments
    cut = rest.index("--")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(CREATE, None, ctypes.c_size_t(0), 1) < ABI:
        sys.exit(f"landlock {ABI} is needed: a kernel from 6.12 on that has it switched on")
    os.chdir(folder)
    check(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    files(libc, folder, rest[:cut])
    user(libc, int(uid))
    check(libc.prctl(1, 9, 0, 0, 0), "death signal")  # it ends with the host's process
    data = os.pread(int(filter), 1 << 20, 0)
    os.close(int(filter))
    steps = ctypes.create_string_buffer(data)
    program = struct.pack("HxxxxxxQ", len(data) // 8, ctypes.addressof(steps))
    check(libc.prctl(22, 2, program, 0, 0), "seccomp")
    command = rest[cut + 1 :]
    os.execv(command[0], command)


def user(libc: ctypes.CDLL, uid: int) -> None:
    """Another user, if one is given, and no capabilities, whoever it is."""
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # drops it from the bounding set; refused to users
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("Ii", 0x20080522, 0)
    check(libc.syscall(CAPSET[platform.machine()], header, bytes(24)), "capset")


def files(libc: ctypes.CDLL, folder: str, paths: list[str]) -> None:
    """Hold everything back but what is named, TCP, abstract sockets and signals included."""
    ruleset = struct.pack("QQQ", ALL_FILES, 3, 3)
    rules = libc.syscall(CREATE, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    check(rules, "landlock")
    read = EXECUTE | READ_FILE | READ_DIR
    allowed = dict.fromkeys(paths, read) | {"/proc/self": READ_FILE | READ_DIR}
    allowed |= {f"/dev/{name}": READ_FILE for name in ("zero", "random", "urandom")}
    allowed |= {"/dev/null": READ_FILE | WRITE_FILE, folder: ALL_FILES & ~DEVICES & ~EXECUTE}
    for path, access in allowed.items():
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            access &= EXECUTE | READ_FILE | WRITE_FILE
        rule = struct.pack("=Qi", access, descriptor)
        check(libc.syscall(ADD, rules, 1, rule, 0), path)
        os.close(descriptor)
    check(libc.syscall(RESTRICT, rules, 0), "landlock")
    os.close(rules)


def check(value: int, what: str) -> None:
    """End when a call failed: nothing runs behind half a wall."""
    if value < 0:
        sys.exit(f"{what} was refused: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
