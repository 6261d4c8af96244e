"""The broker of sandboxes that may reach a few hosts: what it lets through, and what not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from docker_engine import needs_engine
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.records import SandboxResult
from agentloop.sandboxes import egress
from agentloop.sandboxes.egress import Attempted, Broker, _request, broker, is_public
from agentloop.sandboxes.profile import Profile, bare, read_profile

ROOT = Path(__file__).parents[2]
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing")
REAL = [
    pytest.param("bwrap", marks=[pytest.mark.integration, needs_bwrap]),
    pytest.param("docker", marks=[pytest.mark.integration, needs_engine]),
]


class Site(BaseHTTPRequestHandler):
    """Says what it was asked; `/big` is 3 MiB, `/away` sends on to another address."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = f"{self.command} {self.path} {self.headers['Host']} {self.headers['X-Own']}"
        body = bytes(3 * 2**20) if self.path == "/big" else told.encode()
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def asked(*allowed: str, **limits: Any) -> Iterator[tuple[Broker, Callable[[str], str]]]:
    """A broker, and a way to say something to it: all that comes back."""
    profile = Profile(backend="bwrap", egress=allowed or ("example.com:80",), **limits)
    with broker(profile) as made:

        def say(text: str) -> str:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(10)
                line.connect(str(made.place / "socket"))
                line.sendall(text.encode())
                line.shutdown(socket.SHUT_WR)
                parts = iter(lambda: line.recv(65536), b"")
                return b"".join(parts).decode(errors="replace")

        yield made, say


def noted(made: Broker) -> Attempted:
    """What it wrote down last, which it does after its answer."""
    assert waited(made, 1)
    return made.attempted.pop()


def waited(made: Broker, times: int) -> bool:
    until = time.monotonic() + 5
    while len(made.attempted) < times and time.monotonic() < until:
        time.sleep(0.01)
    return len(made.attempted) == times


def test_what_is_named_is_reached(
    site: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests ran may have switched off this logger, or what it passes on.
    monkeypatch.setattr(logging.getLogger("agentloop"), "disabled", False)
    monkeypatch.setattr(logging.getLogger("agentloop"), "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "agentloop")
    here = f"127.0.0.1:{site}"
    with asked(here) as (made, say):
        plain = say(f"GET http://{here}/a?b=c HTTP/1.1\r\nHost: evil\r\nX-Own: 1\r\n\r\n")
        assert plain.startswith("HTTP/1.1 200") and plain.endswith(f"GET /a?b=c {here} 1")
        assert (one := noted(made)).allowed and one.where == here and one.sent and one.received
        tunnel = say(f"CONNECT {here} HTTP/1.1\r\n\r\nGET /t HTTP/1.0\r\n\r\n")
        assert "200 Connection established\r\n\r\nHTTP/1.1 200" in tunnel
        assert tunnel.endswith("GET /t None None")
        assert noted(made).allowed
        away = say(f"GET http://{here}/away HTTP/1.1\r\n\r\n")  # it follows none itself
        assert away.startswith("HTTP/1.1 302") and noted(made).where == here
        assert not made.attempted
    assert f"egress: Attempted(where='{here}', allowed=True" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "CONNECT 127.0.0.2:{port}", "CONNECT 127.0.0.1:1", "CONNECT localhost:{port}",
        "CONNECT 127.0.0.1.:{port}", "CONNECT 127.1:{port}", "CONNECT [::ffff:127.0.0.1]:{port}",
        "CONNECT 127.0.0.1:{port}@evil:1", "CONNECT 127.0.0.1", "GET http://127.0.0.2:{port}/",
        "GET http://127.0.0.1/", "GET http://x@127.0.0.1:{port}/", "GET https://127.0.0.1:{port}/",
        "GET /", "GET file:///etc/passwd", "G\nT http://127.0.0.1:{port}/", "", "\0",
    ],
)  # fmt: skip
def test_what_is_not_named_exactly_is_refused(site: int, text: str) -> None:
    with asked(f"127.0.0.1:{site}") as (made, say):
        answer = say(f"{text.format(port=site)} HTTP/1.1\r\n\r\n")
        assert answer.startswith(("HTTP/1.1 403 ", "HTTP/1.1 400 "))
        assert not (one := noted(made)).allowed and one.why and one.received == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "mixed"])
def test_a_name_leads_to_no_private_address(
    site: int, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    found = ["93.184.215.14", "127.0.0.1"] if address == "mixed" else [address]
    told = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, site)) for one in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: told)
    with asked(f"example.com:{site}") as (made, say):
        answer = say(f"GET http://example.com:{site}/ HTTP/1.1\r\n\r\n")
        assert answer.startswith("HTTP/1.1 403 ")
        assert "not public" in (one := noted(made)).why and not one.allowed


def test_a_name_is_looked_up_once(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that changes its mind leads nowhere else."""
    looked: list[str] = []

    def told(host: str, port: int, *_: object, **__: object) -> list[Any]:
        looked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", told)
    monkeypatch.setattr(egress, "is_public", lambda address: looked == ["example.com"])
    with asked(f"example.com:{site}") as (_, say):
        assert say(f"GET http://example.com:{site}/ HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 200")
    assert looked == ["example.com"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False), ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.100.100.200", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("ff02::1", False),
        ("::ffff:93.184.215.14", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_bytes_and_time_have_an_end(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"127.0.0.1:{site}"
    with asked(here, egress_mb=1) as (made, say):
        assert len(say(f"GET http://{here}/big HTTP/1.1\r\n\r\n")) <= 2**20
        assert "egress_mb" in (one := noted(made)).why and one.received <= 2**20
        assert say(f"GET http://{here}/big HTTP/1.1\r\n\r\n") == ""  # nothing is left for more
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        with asked(silent, seconds=0.3) as (made, say):
            assert say(f"GET http://{silent}/ HTTP/1.1\r\n\r\n") == ""
            assert noted(made).why == "TimeoutError"
    monkeypatch.setattr(egress, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(egress, "ATTEMPTS", 3)
    with asked(here) as (made, say):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(made.place / "socket"))
            line.settimeout(5)
            assert line.recv(1) == b""
        assert say("x" * egress.HEAD * 3) == ""
        get = f"GET http://{here}/ HTTP/1.1\r\n\r\n"
        assert say(get).startswith("HTTP/1.1 200")
        assert waited(made, egress.ATTEMPTS)
        with contextlib.suppress(OSError):  # cut before it is asked, or after
            assert say(get) == ""
        assert len(made.attempted) == egress.ATTEMPTS


def test_who_reads_slowly_gets_all(site: int) -> None:
    here = f"127.0.0.1:{site}"
    with asked(here) as (made, _), socket.socket(socket.AF_UNIX) as line:
        line.connect(str(made.place / "socket"))
        line.sendall(f"GET http://{here}/big HTTP/1.1\r\n\r\n".encode())
        line.shutdown(socket.SHUT_WR)
        got = 0
        while part := line.recv(2**18):
            got += len(part)
            time.sleep(0.02)
        assert got == noted(made).received > 3 * 2**20


def test_it_is_gone_with_its_sandbox(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        with asked(silent) as (made, _), socket.socket(socket.AF_UNIX) as line:
            line.connect(str(made.place / "socket"))
            line.sendall(f"CONNECT {silent} HTTP/1.1\r\n\r\n".encode())
            assert b"200" in line.recv(100)
            made.stop()
            assert line.recv(1) == b"" and noted(made).why == "the sandbox ended"
        assert not made.place.exists()
        with mute.accept()[0] as far:
            assert far.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() <= before + 1  # the site's own


@given(st.binary(max_size=200), st.sampled_from([b"", b"CONNECT ", b"GET http://", b"GET "]))
def test_any_head_is_a_request_or_refused(data: bytes, start: bytes) -> None:
    try:
        host, port, _ = _request(start + data + b"\r\n\r\n")
    except egress._Refused as error:
        assert str(error).isprintable()
    else:
        assert egress.entry(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backend: monty\negress: [a.example:443]", "`monty` has no broker"),
        ("backend: landlock\negress: [a.example:443]", "`landlock` has no broker"),
        ("backend: process\nunsafe: true\negress: [a.example:443]", "`process` has no broker"),
        ("backend: docker\nruntime: runsc\negress: [a.example:443]", "runsc` has no broker"),
        ("backend: bwrap\negress: [a.example]", "no `host:port`"),
        ("backend: bwrap\negress: ['*.example:443']", "no `host:port`"),
        ("backend: bwrap\negress: ['A.example:443']", "lower case"),
        ("backend: bwrap\negress: ['https://a.example:443']", "no `host:port`"),
        ("backend: bwrap\negress: ['a.example:65536']", "no `host:port`"),
        ("backend: bwrap\negress: a.example:443", "egress"),
    ],
)
def test_a_wrong_list_is_told(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as told:
        read_profile(path)
    assert len(str(told.value).splitlines()) == 1


CODE = """
import http.client, socket, ssl, urllib.error, urllib.request
def tell(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError as error:
        return str(error)
print(tell("http://127.0.0.1:{port}/in"))
print(tell("http://127.0.0.1:1/"))
line = http.client.HTTPSConnection("egress", 80, timeout=5)
line.set_tunnel("127.0.0.1", {port})
try:
    line.request("GET", "/")
except ssl.SSLError as error:
    print("TLS", bool(error))
print(len(ssl.create_default_context().get_ca_certs()) > 9)
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        socket.socket(family)
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("name", REAL)
def test_code_finds_it_where_clients_look(
    site: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the walls are as they were: there are no sockets but unix ones."""
    monkeypatch.setattr("agentloop.sandboxes.docker.WARM", 0)
    shipped = read_profile(ROOT / "sandboxes" / name / "profile.yaml")
    profile = Profile(**shipped.model_dump() | {"egress": (f"127.0.0.1:{site}",)})

    async def main() -> SandboxResult:
        sandbox = bare(profile)
        try:
            return await sandbox.run(CODE.replace("{port}", str(site)))
        finally:
            await sandbox.close()

    done = asyncio.run(main())
    assert done.stdout.splitlines() == [
        f"GET /in 127.0.0.1:{site} None", "HTTP Error 403: Forbidden", "TLS True", "True",
        "97", "97",
    ], done  # fmt: skip
    assert not list(Path(tempfile.gettempdir()).glob("agentloop-egress-*"))
