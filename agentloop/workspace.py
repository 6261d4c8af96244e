"""Find content: the user's workspace first, the one carried in the wheel last; and the home.

A workspace is any folder that holds `workflows/` or `langgraph.json`, or a single-workflow folder
(`workflow.yaml`). Run-time state lives in the home (`$AGENTLOOP_HOME`, default `./.agentloop`),
never in content folders.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agentloop.errors import UnknownName, UsageError

_MARKS = ("workflows", "langgraph.json", "workflow.yaml")


def carried() -> Path:
    """The workspace that comes along: the repository root, or `_workspace` in a wheel."""
    package = Path(__file__).resolve().parent
    packed = package / "_workspace"
    return packed if packed.is_dir() else package.parent


@dataclass(frozen=True)
class Workspace:
    """Content folders, the user's before the carried ones."""

    roots: tuple[Path, ...]

    @classmethod
    def find(cls, given: str | os.PathLike[str] | None = None) -> Workspace:
        """`given`, else `$AGENTLOOP_WORKSPACE`, else the nearest parent that is one; then the
        carried one. Raises `UsageError` when a given folder is not a workspace."""
        chosen = given or os.environ.get("AGENTLOOP_WORKSPACE")
        if chosen:
            root = Path(chosen).expanduser().resolve()
            if not any((root / mark).exists() for mark in _MARKS):
                raise UsageError(
                    f"`{root}` is not a workspace (none of {', '.join(_MARKS)} in it); "
                    "create one with: agentloop init DIR"
                )
        else:
            here = Path.cwd()
            root = next(
                (at for at in (here, *here.parents) if any((at / m).exists() for m in _MARKS)),
                carried(),
            )
        return cls(tuple(dict.fromkeys((root, carried()))))

    def workflow(self, name: str) -> Path:
        """The `workflow.yaml` that `name` means: a path to a file or folder, or a folder of
        `workflows/`. Raises `UnknownName`."""
        path = Path(name).expanduser()
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path.resolve()
        if (path / "workflow.yaml").is_file():
            return (path / "workflow.yaml").resolve()
        for root in self.roots:
            found = root / "workflows" / name / "workflow.yaml"
            if found.is_file():
                return found
        raise UnknownName("workflow", name, self.workflows())

    def workflows(self) -> dict[str, Path]:
        """Names of all workflow folders and their files; a user's hides a carried one."""
        return {
            path.parent.name: path
            for root in reversed(self.roots)
            for path in sorted(root.glob("workflows/*/workflow.yaml"))
        }

    def file(self, *parts: str) -> Path | None:
        """The first root's `parts`, or `None`."""
        return next((p for root in self.roots if (p := root.joinpath(*parts)).exists()), None)


def home_path(given: str | os.PathLike[str] | None = None) -> Path:
    """Where `home` is, without a look at it."""
    return Path(given or os.environ.get("AGENTLOOP_HOME") or ".agentloop").expanduser().resolve()


def home(given: str | os.PathLike[str] | None = None, *, create: bool = True) -> Path:
    """The state directory: `given`, else `$AGENTLOOP_HOME`, else `./.agentloop`.

    Raises `UsageError` when it cannot be made or written to.
    """
    path = home_path(given)
    if not create and not path.is_dir():
        raise UsageError(f"there is no home at `{path}`; give another with --home DIR")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"the home `{path}` cannot be used ({error.strerror}); give another with --home DIR"
        ) from error
    return path


def model_cache() -> Path:
    """Where prepared models lie: `$AGENTLOOP_CACHE`, else `$XDG_CACHE_HOME/agentloop`, else
    `~/.cache/agentloop`. One copy serves every home."""
    given = os.environ.get("AGENTLOOP_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser().resolve() if given else Path(base) / "agentloop"
