"""Read `sandboxes/<name>/profile.yaml`: which sandbox, and the limits it runs code under.

Unknown keys are errors that name the nearest valid one, so a misspelt limit is never silently the
default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentloop.errors import UnknownName, UsageError
from agentloop.ports import Sandbox
from agentloop.refs import resolve
from agentloop.workspace import Workspace

MAX_BYTES = 64 * 1024
"""A profile is a few lines; a larger file is refused before it is parsed."""


Backend = Literal["monty", "bwrap", "docker", "landlock", "process"]
_CLASSES: dict[Backend, str] = {
    "monty": "agentloop.sandboxes.monty:MontySandbox",
    "bwrap": "agentloop.sandboxes.bwrap:BwrapSandbox",
    "landlock": "agentloop.sandboxes.landlock:LandlockSandbox",
    "docker": "agentloop.sandboxes.docker:DockerSandbox",
    "process": "agentloop.sandboxes.process:ProcessSandbox",
}
"""Where each backend is; it is imported when it is chosen. Each takes a `Profile`."""
AUTO, ORDER = "auto", ("docker", "bwrap", "landlock")
"""The name that stands for the first of these that holds; `process` is never among them."""


class Profile(BaseModel):
    """Limits of one run of code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend
    seconds: float = Field(default=2.0, gt=0, le=600)
    """Of wall time, for a run and for each answer of a session."""
    session_seconds: int = Field(default=60, ge=1, le=3600)
    """Of CPU, for a whole session."""
    memory_mb: int = Field(default=64, ge=8, le=65536)
    disk_mb: int = Field(default=64, ge=1, le=65536)
    """Of each file that is written, and of all of them where the backend has a disk of its own."""
    pids: int = Field(default=64, ge=1, le=32768)
    """Processes and threads at once."""
    cpu: float = Field(default=1.0, gt=0, le=1024)
    """Processors' worth of time."""
    network: Literal["none"] = "none"
    egress: tuple[str, ...] = Field(default=(), max_length=64)
    """Of `bwrap` and `docker`: `host:port`, each exact, that code may reach through a broker."""
    egress_mb: int = Field(default=16, ge=1, le=65536)
    """Through the broker, in a run or a session, both ways together."""
    seccomp: Path | None = None
    """The filter of system calls, relative to the profile; `seccomp.json` if that is there."""
    image: str | None = Field(default=None, pattern=r"^[a-z0-9][\w./:@-]{0,200}$")
    """Of `docker`: one that the engine has, with `python3`; by default this machine's Python."""
    runtime: Literal["runc", "runsc"] | None = None
    """Of `docker`: what starts containers; `runsc` must be known to the engine."""
    output_bytes: int = Field(default=65536, ge=256, le=64 * 2**20)
    """Kept of what is printed; one MiB more ends the program."""
    unsafe: bool = False
    """Said by who knows that `process` has no walls; no other backend takes it."""

    @model_validator(mode="after")
    def _known_to_be_unsafe(self) -> Self:
        if self.backend == "process" and not self.unsafe:
            raise ValueError(
                "`process` runs code with all your rights; name `auto` or say `unsafe: true`"
            )
        if self.unsafe and self.backend != "process":
            raise ValueError(
                f"`unsafe: true` belongs to `process`; take it out of `{self.backend}`"
            )
        return self

    @model_validator(mode="after")
    def _has_a_broker(self) -> Self:
        if not self.egress:
            return self
        from agentloop.sandboxes.egress import entry

        if self.backend not in ("bwrap", "docker") or self.runtime == "runsc":
            has = "`runtime: runsc`" if self.runtime == "runsc" else f"`{self.backend}`"
            raise ValueError(
                f"{has} has no broker for `egress`; use `bwrap`, or `docker` with runc"
            )
        for one in self.egress:
            try:
                entry(one)
            except UsageError as error:
                raise ValueError(f"egress: {error}") from None
        return self


def read_profile(path: Path) -> Profile:
    """The profile in a file. Raises `UsageError` or `UnknownName`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"`{path}` has {len(data)} bytes; a profile has at most {MAX_BYTES}")
    try:
        values = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError is a timestamp or number that YAML accepts and Python does not.
        raise UsageError(f"`{path}` is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UsageError(f"`{path}` must be a mapping with `backend:` and its limits")
    for key in values:
        if key not in Profile.model_fields:
            raise UnknownName(f"key in `{path}`", str(key), Profile.model_fields)
    named = path.parent / str(values.get("seccomp", "seccomp.json"))
    if "seccomp" in values or named.is_file():
        values["seccomp"] = named
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in fault["loc"])
        raise UsageError(f"`{path}`: {where}{fault['msg'].removeprefix('Value error, ')}") from None


def open_sandbox(name: str, workspace: Workspace) -> Sandbox:
    """The sandbox that profile `name` describes, or, for `auto`, the first of full Python that
    holds on this machine; nothing starts before its first run. Raises `UsageError` for a profile
    or a machine that cannot work, `UnknownName`."""
    path = workspace.file("sandboxes", name, "profile.yaml")
    if path is None and name == AUTO:
        return _first_that_holds(workspace)
    if path is None:
        raise UnknownName("sandbox", name, {AUTO, *profiles(workspace)})
    return open_profile(read_profile(path))


def profiles(workspace: Workspace) -> dict[str, Path]:
    """Names of all profiles and their files; a user's hides a carried one."""
    return {
        path.parent.name: path
        for root in reversed(workspace.roots)
        for path in sorted(root.glob("sandboxes/*/profile.yaml"))
    }


def open_profile(profile: Profile) -> Sandbox:
    """The sandbox of its backend. One with walls of the system's is proved before its first run
    (`preflight.Proven`). Raises `UsageError` where the backend cannot be used here."""
    made = bare(profile)
    if profile.backend in ("monty", "process"):
        sandbox: Sandbox = made
        return sandbox
    from agentloop.sandboxes.preflight import Proven

    return Proven([made])


def bare(profile: Profile) -> Any:
    """The sandbox of its backend, unproved."""
    return resolve(_CLASSES[profile.backend])(profile)  # type: ignore[operator]


def _first_that_holds(workspace: Workspace) -> Sandbox:
    from agentloop.sandboxes.preflight import Proven

    candidates: list[Any] = []
    missing: list[str] = []
    for backend in ORDER:
        path = workspace.file("sandboxes", backend, "profile.yaml")
        if path is not None:
            try:
                candidates.append(bare(read_profile(path)))
            except UsageError as error:
                missing.append(f"`{backend}`: {error}")
    if not candidates:
        raise UsageError(f"no sandbox for full Python can be used here: {'; '.join(missing)}")
    return Proven(candidates)
