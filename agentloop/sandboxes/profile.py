"""Read `sandboxes/<name>/profile.yaml`: which sandbox, and the limits it runs code under.

Unknown keys are errors that name the nearest valid one, so a misspelt limit is never silently the
default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentloop.errors import UnknownName, UsageError
from agentloop.ports import Sandbox
from agentloop.workspace import Workspace

MAX_BYTES = 64 * 1024
"""A profile is a few lines; a larger file is refused before it is parsed."""


class Profile(BaseModel):
    """Limits of one run of code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["monty"]
    seconds: float = Field(default=2.0, gt=0, le=600)
    memory_mb: int = Field(default=64, ge=8, le=65536)
    output_bytes: int = Field(default=65536, ge=256, le=64 * 2**20)


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
        raise UsageError(f"`{path}` must be a mapping with `backend: monty` and its limits")
    for key in values:
        if key not in Profile.model_fields:
            raise UnknownName(f"key in `{path}`", str(key), Profile.model_fields)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise UsageError(f"`{path}`: {fault['loc'][0]}: {fault['msg']}") from None


def open_sandbox(name: str, workspace: Workspace) -> Sandbox:
    """The sandbox that profile `name` describes; nothing starts before its first run."""
    path = workspace.file("sandboxes", name, "profile.yaml")
    if path is None:
        known = [
            found.parent.name
            for root in workspace.roots
            for found in root.glob("sandboxes/*/profile.yaml")
        ]
        raise UnknownName("sandbox", name, set(known))
    profile = read_profile(path)
    # `backend` has one value so far; a second one adds a branch here.
    from agentloop.sandboxes.monty import MontySandbox

    return MontySandbox(profile)
