"""What of this machine an interpreter needs to run: the least that a sandbox has to show of it.

Out: the executable that this process runs on, its standard library, and the folders of the system
libraries that it is linked with. No other programs, and no installed packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agentloop.errors import SandboxError


@dataclass(frozen=True)
class Interpreter:
    """Paths that must be readable, without symbolic links in `executable` and `stdlib`."""

    executable: Path
    prefix: Path
    stdlib: Path
    libraries: tuple[Path, ...]
    """Folders of shared libraries and the files of the dynamic loader."""

    @property
    def packages(self) -> Path | None:
        """Where packages are installed, when that lies within the standard library."""
        found = self.stdlib / "site-packages"
        return found if found.is_dir() else None

    def paths(self) -> tuple[Path, ...]:
        """All that has to be shown."""
        return (self.executable, self.stdlib, *self.libraries)


@cache
def interpreter() -> Interpreter:
    """This process's own interpreter, outside of its virtual environment."""
    executable = Path(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
    stdlib = Path(os.path.realpath(sysconfig.get_path("stdlib")))
    try:
        told = subprocess.run(
            ["ldd", executable], env={"PATH": os.defpath}, capture_output=True, text=True,
            timeout=30, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"the libraries of `{executable}` cannot be listed: {error}") from error
    found: dict[Path, None] = {}
    for word in re.findall(r"(/\S+) \(0x", told):
        path = Path(word)
        found[path if path.name.startswith("ld-") else path.parent] = None
    return Interpreter(executable, Path(os.path.realpath(sys.base_prefix)), stdlib, tuple(found))
