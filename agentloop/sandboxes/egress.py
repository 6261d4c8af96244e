"""The way out for profiles that need one: a proxy of HTTP that lets through what a list names.

In: a profile's `egress:` (`host:port`, exact). Out: a folder with the broker's socket and this
machine's certificates, to be shown in the sandbox at `INSIDE`, whose network stays empty. Code asks
it as it would any proxy: `CONNECT host:port` for TLS, a whole `http://` address without. The broker
resolves names itself, connects only to addresses that are public (others must be in the list as
addresses), follows no redirect, and counts bytes and time. Each attempt is an `Attempted` and a
line in the log. It runs in a thread of its own, because it must not depend on who waits for the
sandbox. Residual risk: what an allowed host takes in and gives out is not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentloop.errors import SandboxError, UsageError
from agentloop.sandboxes.output import one_line
from agentloop.sandboxes.owned import folder, open_place
from agentloop.sandboxes.profile import Profile

INSIDE = "/egress"
"""Where a sandbox finds the broker's folder."""
PROXY = "egress"
"""The proxy's host name in `http_proxy`; `child.py` connects to the socket in its place."""
ENVIRONMENT = {
    "AGENTLOOP_EGRESS": f"{INSIDE}/socket",
    "http_proxy": f"http://{PROXY}:80",
    "https_proxy": f"http://{PROXY}:80",
    "SSL_CERT_FILE": f"{INSIDE}/certificates.pem",
}
"""What code gets to know of it."""
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
"""Where distributions keep the certificates that OpenSSL looks for one by one."""
HEAD = 16 * 1024
"""Bytes of a request's head at most."""
HEAD_SECONDS, CONNECT_SECONDS = 10.0, 10.0
AT_ONCE, ATTEMPTS = 16, 1000
"""Connections; attempts of one run: code can fill neither the log nor the host's descriptors."""
_ENTRY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*):([1-9][0-9]{0,4})")
_PASSED_OVER = {b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"host"}
_log = logging.getLogger("agentloop")


@dataclass(frozen=True)
class Attempted:
    """One attempt to get out: where to, whether it was let through, else why not, and how many
    bytes went each way."""

    where: str
    allowed: bool
    why: str = ""
    sent: int = 0
    received: int = 0


class _Refused(Exception):
    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


def entry(text: str) -> tuple[str, int]:
    """Host and port of an entry of the list. Raises `UsageError`."""
    found = _ENTRY.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise UsageError(
            f"`{text[:80]}` is no `host:port`; name one host exactly, in lower case, and its port"
        )
    return found[1].strip("[]"), int(found[2])


@contextmanager
def broker(profile: Profile) -> Iterator[Broker]:
    """A broker that lives as long as the context, for one program: `egress_mb` in all, both ways
    together, and `seconds` for each connection. Raises `SandboxError` when it does not start."""
    bundles = [ssl.get_default_verify_paths().cafile or "", *BUNDLES]
    with folder("egress", open_place(), mode=0o755) as place:
        for bundle in filter(os.path.isfile, bundles[::-1]):
            shutil.copyfile(bundle, Path(place, "certificates.pem"))
        made = Broker(Path(place), profile)
        made.start()
        try:
            yield made
        finally:
            made.stop()


class Broker:
    """A proxy on `place/socket`. `attempted` is what was tried, in the order in which it ended."""

    def __init__(self, place: Path, profile: Profile) -> None:
        self.place, self.attempted = place, list[Attempted]()
        self._allowed = {entry(one) for one in profile.egress}
        self._left, self._seconds = profile.egress_mb * 2**20, profile.seconds
        self._lines: set[asyncio.Task[None]] = set()
        self._came = 0
        self._loop = asyncio.new_event_loop()
        self._up, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="egress", daemon=True)
        self._fault: OSError | None = None

    def start(self) -> None:
        """Be ready to be asked."""
        self._thread.start()
        self._up.wait()
        if self._fault is not None:
            raise SandboxError(f"the egress broker did not start: {one_line(str(self._fault))}")

    def stop(self) -> None:
        """Cut every connection; nothing is listening when this returns."""
        with contextlib.suppress(RuntimeError):  # it ended by itself
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._fault = error
        finally:
            self._loop.close()  # a look-up that is under way is not waited for
            self._up.set()

    async def _serve(self) -> None:
        path = self.place / "socket"
        server = await asyncio.start_unix_server(self._asked, path, limit=HEAD)
        os.chmod(path, 0o666)  # who may reach it is the sandbox's matter
        self._up.set()
        try:
            await self._end.wait()
        finally:
            server.close()
            for line in self._lines:
                line.cancel()
            if self._lines:
                await asyncio.wait(self._lines)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._came += 1
        if len(self._lines) >= AT_ONCE or self._came > ATTEMPTS:
            writer.transport.abort()
            return
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        count = [0, 0]
        where, why, met = "", "", False
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            host, port, first = _request(head)
            where = f"{host}:{port}"
            async with asyncio.timeout(self._seconds):
                far = await self._met(host, port)
                met = True
                await self._pass(first, (reader, writer), far, count)
        except _Refused as error:
            why = str(error)
            writer.write(f"HTTP/1.1 {error.status}\r\nContent-Length: 0\r\n\r\n".encode())
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            why = one_line(str(error)) or type(error).__name__
        except asyncio.CancelledError:
            why = "the sandbox ended"
        finally:
            self._lines.discard(line)
            await _hang_up(writer)
            self._note(Attempted(where, met, why, *count))

    def _note(self, attempt: Attempted) -> None:
        self.attempted.append(attempt)
        level = logging.INFO if attempt.allowed else logging.WARNING
        _log.log(level, "egress: %s", attempt)

    async def _met(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to where the list allows one to."""
        if (host, port) not in self._allowed:
            raise _Refused("403 Forbidden", "the profile's `egress` does not name it")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
                if not _is_address(host) and not all(map(is_public, addresses)):
                    raise _Refused("403 Forbidden", f"it is {', '.join(addresses)}: not public")
                return await _connected(addresses, port)
        except OSError as error:  # a TimeoutError is one
            why = one_line(str(error)) or "no answer"
            raise _Refused("502 Bad Gateway", why) from error

    async def _pass(
        self,
        first: bytes,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        count: list[int],
    ) -> None:
        """Bytes both ways, until both have ended. Raises `OSError` beyond the most."""

        async def one_way(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: int
        ) -> None:
            while data := await source.read(65536):
                await self._send(data, sink, count, way)
            sink.write_eof()

        try:
            if first:
                await self._send(first, far[1], count, 0)
            else:
                near[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as both:
                both.create_task(one_way(near[0], far[1], 0))
                both.create_task(one_way(far[0], near[1], 1))
        except* OSError as errors:
            raise OSError(str(errors.exceptions[0])) from errors
        finally:
            await _hang_up(far[1])

    async def _send(
        self, data: bytes, sink: asyncio.StreamWriter, count: list[int], way: int
    ) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise OSError("more bytes than `egress_mb` allows")
        count[way] += len(data)
        sink.write(data)
        await sink.drain()


async def _connected(
    addresses: list[str], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first that answers of the addresses that were looked at, by no second look-up, which
    might tell others. Raises `OSError`."""
    fault = OSError("it has no address")
    for address in addresses:
        try:
            return await asyncio.open_connection(address, port)
        except OSError as error:
            fault = error
    raise fault


def is_public(address: str) -> bool:
    """Does `address` belong to the public internet, and to no machine or network of ours? An IPv6
    address that carries an IPv4 one is none, whatever it carries."""
    known = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(known, ipaddress.IPv6Address):
        carries = known.ipv4_mapped or known.sixtofour or known.teredo
        if carries or known not in ipaddress.ip_network("2000::/3"):
            return False
    return known.is_global and not known.is_multicast


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _request(head: bytes) -> tuple[str, int, bytes]:
    """Host, port, and what is to be sent first: nothing for `CONNECT`, the request as a server
    expects it otherwise."""
    first, *lines = head[:-4].split(b"\r\n")
    try:
        method, target, version = first.decode("ascii").split(" ")
        if method == "CONNECT":
            return *entry(target.lower()), b""
        parts = urlsplit(target)
        if parts.scheme != "http" or not method.isalpha() or not version.startswith("HTTP/1."):
            raise ValueError("it is neither CONNECT nor a whole `http://` address")
        where = parts.netloc.lower()
        host, port = entry(where if parts.port else f"{where}:80")
    except (ValueError, UsageError) as error:
        raise _Refused("400 Bad Request", one_line(str(error))) from error
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in _PASSED_OVER]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    own = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    return host, port, b"\r\n".join([*(line.encode() for line in own), *kept, b"", b""])


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close, once what was written has been read, or soon."""
    writer.close()
    try:
        async with asyncio.timeout(1.0):
            await writer.wait_closed()
    except (TimeoutError, asyncio.CancelledError):
        writer.transport.abort()
    except OSError:
        pass  # it was cut from the other side
