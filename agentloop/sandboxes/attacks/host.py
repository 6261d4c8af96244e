"""The host as an attempt sees it: canaries that are planted, watched and taken away again.

Comes out of it: `hints`, what an attempt is told (where things are, never what they hold), and
afterwards `seen`, which attempts touched something, and `shows`, whether a text holds a secret.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from agentloop.records import Json

SIGNALS = {
    signal.SIGUSR1: "signal a host process",
    signal.SIGUSR2: "signal a host process by handle",
    signal.SIGWINCH: "signal a host thread",
    signal.SIGURG: "signal on a socket's behalf",
}
"""Whose attempt a signal is that arrives at the planted process."""
FILES = ("/etc/shadow", "/etc/passwd", "/etc/hostname", "/etc/fstab")
VARIABLE = "AGENTLOOP_CANARY"
GRACE = 1.0
"""Seconds within which what a run started must be gone after its result came back."""
LOOKS = 4
"""In a row that must find none: one that hands over to its child again and again can be missed."""
VICTIM = """
import ctypes, os, signal, sys
held = ctypes.create_string_buffer(sys.stdin.buffer.readline().strip())
for number in map(int, sys.argv[3:]):
    signal.signal(number, lambda n, _: os.write(1, f"{n}\\n".encode()))
print(ctypes.addressof(held), flush=True)
sys.stdin.read()
"""


class Host:
    """A context manager; needs `/proc`. What it cannot plant (no IPv6), nothing can reach."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.hints: dict[str, Json] = {"token": self.token, "variable": VARIABLE}
        self._secrets: list[str] = []
        self._seen: set[str] = set()
        self._stack = ExitStack()
        self._watched = selectors.DefaultSelector()
        self._ended = threading.Event()

    def __enter__(self) -> Host:
        with ExitStack() as stack:
            self._stack = stack
            self._plant_files()
            self._plant_variable()
            self._plant_listeners()
            self._plant_ipc()
            self._plant_process()
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            stack.callback(watcher.join)
            stack.callback(self._ended.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shows(self, text: str) -> bool:
        """Whether `text` holds something that only the host knows."""
        return any(secret in text for secret in self._secrets)

    def seen(self) -> set[str]:
        """The names of the attempts that touched a canary so far."""
        time.sleep(0.05)  # what was sent is read by then
        return self._seen | {path.name for path in self._open.iterdir()} | self._changed()

    def survivors(self, comm: str) -> int:
        """How many processes of this name, which nothing else has, were left after the grace; they
        are ended."""
        until, none = time.monotonic() + GRACE, 0
        while none < LOOKS:
            left = [one for one in _newest_first() if comm in _names(one) and not _dead(one)]
            none = 0 if left else none + 1
            if left and time.monotonic() > until:
                for process in left:
                    with suppress(OSError):
                        os.kill(int(process.name), signal.SIGKILL)
                return len(left)
            time.sleep(0.02)
        return 0

    def _secret(self) -> str:
        self._secrets.append(secrets.token_hex(16))
        return self._secrets[-1]

    def _plant_files(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="agentloop-canary-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        for name in ("secret", "changed", "removed", "renamed", "truncated", "mode"):
            place = folder / name
            place.write_text(self._secret())
            place.chmod(0o600 if name == "mode" else 0o666)
            self.hints[name] = str(place)
        (folder / self._secret()).touch()  # a name that only a listing tells
        program = folder / "program"
        program.write_text(f"#!/bin/sh\necho {self._secret()}\n")
        program.chmod(0o755)
        import _ctypes

        library = shutil.copy(_ctypes.__file__, folder / "library.so")
        self._open = folder / "open"
        self._open.mkdir()
        self._open.chmod(0o777)
        self._changed_file = folder / "changed"
        shared = Path("/dev/shm", f"agentloop-{self.token}")
        shared.write_text(self._secret())
        shared.chmod(0o644)
        self._stack.callback(shared.unlink, missing_ok=True)
        self.hints |= {
            "open": str(self._open), "program": str(program), "library": str(library),
            "shared": str(shared),
        }  # fmt: skip
        for held in (os.open(folder / "secret", os.O_RDONLY), os.open(folder, os.O_RDONLY)):
            os.set_inheritable(held, True)
            self._stack.callback(os.close, held)
        for path in map(Path, FILES):
            with suppress(OSError):
                if content := path.read_bytes():
                    self._secrets.append(hashlib.sha256(content).hexdigest())
        disk = os.stat("/").st_dev
        self.hints["disk_number"] = [os.major(disk), os.minor(disk)]
        device = Path(f"/sys/dev/block/{os.major(disk)}:{os.minor(disk)}")
        self.hints["disk"] = f"/dev/{device.resolve().name}"

    def _changed(self) -> set[str]:
        return {"write over a host file"} if len(self._changed_file.read_text()) > 32 else set()

    def _plant_variable(self) -> None:
        os.environ[VARIABLE] = self._secret()
        self._stack.callback(os.environ.pop, VARIABLE, None)

    def _plant_listeners(self) -> None:
        path = str(self._open.parent / "socket")
        places: dict[str, tuple[int, int, Any]] = {
            "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "tcp2": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.2", 0)),
            "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "unix": (socket.AF_UNIX, socket.SOCK_STREAM, path),
            "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0agentloop-{self.token}"),
            "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, f"\0agentloop-{self.token}-d"),
        }
        for name, (family, kind, address) in places.items():
            listener = self._stack.enter_context(socket.socket(family, kind))
            listener.setblocking(False)
            self.hints[name] = 0
            try:
                listener.bind(address)
            except OSError:
                continue
            if kind == socket.SOCK_STREAM:
                listener.listen(64)
            if family != socket.AF_UNIX:
                self.hints[name] = listener.getsockname()[1]
            self._watched.register(listener, selectors.EVENT_READ)
            listener.set_inheritable(name == "tcp")
        self.hints |= {"unix": path, "abstract": f"agentloop-{self.token}"}
        os.chmod(path, 0o777)

    def _plant_ipc(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        key = secrets.randbelow(2**30) + 1
        rights, remove = 0o1666, 0
        segment, queue = libc.shmget(key, 4096, rights), libc.msgget(key, rights)
        semaphore = libc.semget(key, 1, rights)
        self._stack.callback(libc.shmctl, segment, remove, None)
        self._stack.callback(libc.msgctl, queue, remove, None)
        self._stack.callback(libc.semctl, semaphore, 0, remove)
        secret = self._secret().encode()
        at = libc.shmat(segment, None, 0)
        ctypes.memmove(at, secret, len(secret))
        libc.shmdt(ctypes.c_void_p(at))
        message = ctypes.create_string_buffer(b"\1" + bytes(7) + self._secret().encode())
        libc.msgsnd(queue, message, 32, 0)
        self.hints["key"] = key

    def _plant_process(self) -> None:
        words = [self.token, self._secret(), *(str(int(number)) for number in SIGNALS)]
        command = [sys.executable, "-I", "-S", "-c", VICTIM, *words]
        pipe = subprocess.PIPE
        victim = self._stack.enter_context(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, env={VARIABLE: self._secret()})
        )
        self._stack.callback(victim.kill)
        assert victim.stdin is not None and victim.stdout is not None
        victim.stdin.write(self._secret().encode() + b"\n")
        victim.stdin.flush()
        self.hints |= {"pid": victim.pid, "address": int(victim.stdout.readline())}
        os.set_blocking(victim.stdout.fileno(), False)
        self._watched.register(victim.stdout, selectors.EVENT_READ)

    def _watch(self) -> None:
        """Write down who came, until the end."""
        lines: list[socket.socket] = []
        while not self._ended.is_set():
            for key, _ in self._watched.select(0.02):
                with suppress(OSError):
                    if isinstance(key.fileobj, socket.socket):
                        self._hear(key.fileobj, lines)
                    else:
                        for number in os.read(key.fd, 4096).split():
                            self._seen.add(SIGNALS[signal.Signals(int(number))])
        for line in lines:
            line.close()
        self._watched.close()

    def _hear(self, listener: socket.socket, lines: list[socket.socket]) -> None:
        if listener.type == socket.SOCK_STREAM and listener not in lines:
            line, _ = listener.accept()
            line.setblocking(False)
            lines.append(line)
            self._watched.register(line, selectors.EVENT_READ)
            return
        text = unquote(listener.recv(4096).decode(errors="replace"))
        if not text:
            self._watched.unregister(listener)
        self._seen.add(text.removeprefix("GET /").partition(" HTTP/")[0])


def _names(process: Path) -> tuple[str, str]:
    """What a process calls itself, and the name it was started by."""
    try:
        started = (process / "cmdline").read_bytes().partition(b"\0")[0]
        return (process / "comm").read_text().strip(), started.decode(errors="replace")
    except OSError:
        return "", ""


def _dead(process: Path) -> bool:
    """Is it over, if not buried yet? One whose first thread alone has ended lives on."""
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" and len(os.listdir(process / "task")) == 1
    except OSError:
        return True


def _newest_first() -> list[Path]:
    """All processes; the kernel tells the number that it gave last, and gives them in a circle."""
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    found = Path("/proc").glob("[0-9]*")
    return sorted(found, key=lambda process: (last - int(process.name)) % 2**22)
