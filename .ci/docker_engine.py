"""Run a command beside a Docker engine of its own: `python .ci/docker_engine.py COMMAND...`.

The engine is a real dockerd on a private socket (`DOCKER_HOST` of the command), without networks,
with its data in a temporary folder and its mounts in a namespace of its own. Its programs come from
the distribution's packages, unpacked into `.docker-engine/` and not installed, so that no service
starts. It is stopped by its pid when the command ends, and leaves nothing.

An engine that `DOCKER_HOST` names already is used as it is. Where none can be started, the command
runs all the same, with the reason in `NO_DOCKER_ENGINE`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".docker-engine"
PACKAGES = ("docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1")
MADE = (Path("/etc/docker"), Path("/run/docker"))
"""Folders that dockerd makes whatever it is told."""
START_SECONDS, STOP_SECONDS = 60.0, 30.0


class NoEngine(Exception):
    """Why there is none."""


def programs() -> dict[str, str]:
    """The environment in which dockerd and what it starts are found. Raises `NoEngine`."""
    if shutil.which("dockerd") and shutil.which("docker-init"):
        return dict(os.environ)
    root = FOLDER / "root"
    if not (root / "usr/sbin/dockerd").exists():
        if not shutil.which("apt-get"):
            raise NoEngine("dockerd is not installed and there is no apt-get to get it with")
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", *PACKAGES]):
            done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
        if done.returncode:
            raise NoEngine(f"apt-get download: {(done.stderr.splitlines() or ['failed'])[-1]}")
        for package in FOLDER.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
            package.unlink()
    libraries = ":".join(str(found.parent) for found in root.glob("usr/lib/*/libdevmapper*"))
    path = f"{root}/usr/sbin:{root}/usr/bin:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries}


@contextmanager
def engine() -> Iterator[str]:
    """The engine's address. Raises `NoEngine`."""
    if os.geteuid():
        raise NoEngine("dockerd needs root; start it yourself and set DOCKER_HOST")
    environment = programs()
    group = f"agentloop-engine-{os.getpid()}"
    made = [path for path in MADE if not path.exists()]
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            dockerd = subprocess.Popen(
                command(folder, group), env=environment, stdout=log, stderr=log, cwd=folder,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        try:
            wait_for(folder / "docker.sock", dockerd, folder / "log")
            yield f"unix://{folder}/docker.sock"
        finally:
            dockerd.send_signal(signal.SIGTERM)
            try:
                dockerd.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                dockerd.kill()
                dockerd.wait()
            clear(group)
            for path in made:
                shutil.rmtree(path, ignore_errors=True)


def command(folder: Path, group: str) -> list[str]:
    """How to start dockerd so that it changes nothing outside `folder`, but for one group of
    control groups."""
    return [
        "unshare", "--mount", "--propagation", "private", "dockerd",
        f"--host=unix://{folder}/docker.sock", f"--pidfile={folder}/pid",
        f"--data-root={folder}/data", f"--exec-root={folder}/exec",
        "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
        "--ip-masq=false", "--userland-proxy=false", f"--cgroup-parent=/{group}",
        "--log-level=warn",
    ]  # fmt: skip


def wait_for(path: Path, dockerd: subprocess.Popen[bytes], log: Path) -> None:
    """Until the engine answers. Raises `NoEngine` with the last it said."""
    until = time.monotonic() + START_SECONDS
    while dockerd.poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5)
            line.connect(str(path))
            line.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            if b" 200 " in line.recv(64):
                return
        time.sleep(0.1)
    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise NoEngine(f"dockerd did not start: {said[-1][:300]}")


def clear(group: str) -> None:
    """Remove the engine's control groups, which it leaves."""
    for top in (*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")):
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def main(words: list[str]) -> int:
    """The command's exit status."""
    if not words:
        print(__doc__)
        return 2
    if os.environ.get("DOCKER_HOST"):
        return subprocess.run(words).returncode
    try:
        with engine() as address:
            return subprocess.run(words, env={**os.environ, "DOCKER_HOST": address}).returncode
    except NoEngine as error:
        print(f"no Docker engine: {error}", file=sys.stderr)
        return subprocess.run(words, env={**os.environ, "NO_DOCKER_ENGINE": str(error)}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
