"""The program that runs inside a sandbox of full Python and runs the code it is sent.

    python -I -S -B -u -X utf8 -c SOURCE REQUESTS REPLIES

Two descriptors lead to the host: pipes, one socket twice, or stdin and stdout. It says `hello`,
gets a job (`channel.job`), lays out its files, sets the limits and says `ready`; from then on it is
untrusted, because it runs the code in its own interpreter (a second one would double the time to
start). After `ready` only a session uses the channel. It is sent as an argument, so no file of the
host has to be readable, and it imports little, because every run waits for it.
"""

from __future__ import annotations

import _ast
import os
import resource
import sys
from types import ModuleType

NAME = "program.py"
"""The code's file name in tracebacks; there is no such file."""
TREE: int = 0x400
"""`ast.PyCF_ONLY_AST`, without the import."""


def main(requests: int, replies: int) -> None:
    """Serve one job. The exit status is the code's own."""
    if requests == 0:
        requests = os.dup(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    for descriptor in {requests, replies} - {1}:
        os.set_inheritable(descriptor, False)  # what the code starts has no part in the channel
    source = os.fdopen(requests, "rb")
    sink = os.fdopen(replies, "wb", closefd=replies not in (1, requests))
    say(sink, b"hello")
    mode, limits, *arguments = [frame.decode() for frame in frames(source)]
    code, *files = frames(source)
    for name, data in zip(files[::2], files[1::2], strict=True):
        with open(name, "xb") as file:
            file.write(data)
    for limit in limits.split():
        lower(*limit.split("="))
    module = ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, [NAME, *arguments]
    sys.path.append(os.getcwd())
    if broker := os.environ.get("AGENTLOOP_EGRESS"):
        way_out(broker)
    say(sink, b"ready")
    if mode == "session":
        if replies == 1:  # the code's stdout is now its stderr
            sink = os.fdopen(os.dup(1), "wb")
            os.dup2(2, 1)
        program(code, module.__dict__)
        say(sink, b"loaded")
        answers(module, source, sink)
        return
    sink.close()
    source.close()
    (snippet if mode == "snippet" else program)(code, module.__dict__)


def frames(source) -> list[bytes]:  # type: ignore[no-untyped-def]
    """A count, then so many byte strings, each after its length; numbers are 4 bytes."""
    return [source.read(number(source)) for _ in range(number(source))]


def number(source) -> int:  # type: ignore[no-untyped-def]
    """The next 4 bytes."""
    data = source.read(4)
    if len(data) < 4:
        sys.exit("the host is gone")
    return int.from_bytes(data, "big")


def say(sink, line: bytes) -> None:  # type: ignore[no-untyped-def]
    """One line to the host, at once."""
    sink.write(line + b"\n")
    sink.flush()


def lower(kind: str, most: str) -> None:
    """Set a limit of this process and what it starts; one that is lower already stays."""
    number = getattr(resource, f"RLIMIT_{kind}")
    hard = resource.getrlimit(number)[1]
    value = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    resource.setrlimit(number, (value, value))


def way_out(path: str) -> None:
    """Lead `urllib` and `http.client` to the broker's socket where they look for the proxy: there
    are no sockets here but unix ones, which have no options of TCP."""
    import socket

    class Line(socket.socket):
        def setsockopt(self, *arguments) -> None:  # type: ignore[no-untyped-def]
            if arguments[0] != socket.IPPROTO_TCP:
                super().setsockopt(*arguments)

    usual = socket.create_connection

    def connect(address, timeout=None, *rest, **options):  # type: ignore[no-untyped-def]
        if address[0] != "egress":
            return usual(address, timeout, *rest, **options)
        line = Line(socket.AF_UNIX)
        line.settimeout(timeout if isinstance(timeout, int | float) else None)
        line.connect(path)
        return line

    socket.create_connection = connect


def program(code: bytes, namespace: dict[str, object]) -> None:
    """Run a whole program."""
    exec(compile(code, NAME, "exec"), namespace)


def snippet(code: bytes, namespace: dict[str, object]) -> None:
    """Run a program and, as in a REPL, show a last expression if nothing was printed."""
    tree = compile(code, NAME, "exec", TREE)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    wrote: list[str] = []
    write = sys.stdout.write

    def noted(text: str) -> int:
        wrote.append(text[:1])
        return write(text)

    sys.stdout.write = noted  # type: ignore[method-assign]
    exec(compile(tree, NAME, "exec"), namespace)
    if last is not None:
        show = sys.displayhook
        sys.displayhook = lambda value: None if wrote else show(value)
        exec(compile(_ast.Interactive([last]), NAME, "single"), namespace)


def answers(module, source, sink) -> None:  # type: ignore[no-untyped-def]
    """A line in, a line out, until the host is gone."""
    for line in source:
        text = module.answer(line[:-1].decode())
        if not isinstance(text, str) or "\n" in text:
            sys.exit(f"answer() must return text of one line; it returned {type(text).__name__}")
        say(sink, text.encode(errors="replace"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
