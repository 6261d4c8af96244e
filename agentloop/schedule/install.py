"""A scheduler that starts with the machine: a unit for systemd, or a line for cron.

In: the command line to run, as a list. Out: the text of a file and the command with which a person
enables it; done again it replaces what it enabled before. Nothing is enabled here. Under systemd
the scheduler stays; from cron it is started every five minutes, does what is due and ends (a second
one ends at once).
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentloop.errors import UsageError

_UNIT = """\
[Unit]
Description=agentloop: cycles of {name}

[Service]
ExecStart={command}
WorkingDirectory={directory}
# Keys of models go there, one NAME='VALUE' a line; chmod 600. A unit's own text is not secret.
EnvironmentFile=-{keys}
Restart=on-failure
RestartSec=30
# It ends within 10 seconds by itself, and what it started with it.
KillMode=mixed
TimeoutStopSec=15

[Install]
WantedBy=default.target
"""


@dataclass(frozen=True)
class Installation:
    """What to write where, and what a person runs then."""

    path: Path
    text: str
    enable: str
    """A shell command."""

    def write(self) -> None:
        """Write the file, its folder too. Raises `UsageError` when that cannot be done."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"`{self.path}` cannot be written ({error.strerror}); use --dry-run and put the "
                "text where it belongs yourself"
            ) from error


def systemd(name: str, command: Sequence[str], *, directory: Path, home: Path) -> Installation:
    """A user unit that keeps `command` running. Raises `UsageError`."""
    _check(name, *command, str(directory), str(home))
    given = os.environ.get("XDG_CONFIG_HOME")
    config = Path(given) if given else Path.home() / ".config"
    unit = f"{_label(name, home)}.service"
    text = _UNIT.format(
        name=_percent(name), command=" ".join(_quoted(one) for one in command),
        directory=_percent(str(directory)), keys=_percent(str(home / "keys.env")),
    )  # fmt: skip
    return Installation(
        path=config / "systemd" / "user" / unit,
        text=text,
        enable=f"systemctl --user daemon-reload && systemctl --user enable --now {unit}"
        " && loginctl enable-linger",
    )


def cron(name: str, command: Sequence[str], *, directory: Path, home: Path) -> Installation:
    """A line of a crontab that does what is due every five minutes, with its output in a file.
    Raises `UsageError`."""
    _check(*command, str(directory), str(home))
    log, keys = (shlex.quote(str(home / file)) for file in ("schedule.log", "keys.env"))
    label = _label(name, home)
    line = (
        f"cd {shlex.quote(str(directory))} && {{ [ ! -f {keys} ] || {{ set -a; . {keys}; }}; "
        f"{shlex.join(command)} --due >> {log} 2>&1; }} # {label}"
    )
    path = home / f"{label}.crontab"
    kept = f"crontab -l 2>/dev/null | grep -vF '# {label}'"
    return Installation(
        path=path,
        text=f"*/5 * * * * {line}\n".replace("%", "\\%"),  # cron reads % as a line break
        enable=f"({kept}; cat {shlex.quote(str(path))}) | crontab -",
    )


def _label(name: str, home: Path) -> str:
    """The same for one workflow and home, another for the same workflow in another home."""
    plain = "".join(
        one if one.isascii() and (one.isalnum() or one in "-_") else "-" for one in name
    )
    digest = hashlib.blake2b(f"{home}\0{name}".encode(), digest_size=4).hexdigest()
    return f"agentloop-{plain}-{digest}"


def _check(*texts: str) -> None:
    """Both files are read line by line."""
    for text in texts:
        if any(one < " " for one in text):
            raise UsageError(
                f"{text!r} cannot stand in a unit or a crontab: it has a line break or another "
                "control character; rename it"
            )


def _percent(text: str) -> str:
    """As systemd reads it back."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """One word of an `ExecStart` (systemd.service(5), "Command lines")."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_percent(escaped)}"'
