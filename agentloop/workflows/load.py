"""Read a `workflow.yaml`, apply overrides and build its parts.

Goes in: a path. Comes out: a `Loaded` workflow with its folder, its name and a hash of everything
that decides its results. A string value that starts with `./` is a path or a file reference
relative to the workflow's folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from agentloop.errors import MissingDependency, UsageError
from agentloop.gateway.program import resolve_command
from agentloop.records import Json
from agentloop.refs import resolve
from agentloop.workflows.schema import PartSpec, Workflow, explain, validate
from agentloop.workspace import Workspace

# A workflow is a page or two; more is a mistake or an attack.
_MAX_CHARACTERS = 256 * 1024
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Loaded:
    """A checked workflow and where it lies."""

    name: str
    path: Path
    spec: Workflow

    @property
    def folder(self) -> Path:
        """Its folder: relative paths start here."""
        return self.path.parent

    def build(self, part: PartSpec) -> Any:
        """The live object of a part."""
        return build(part, self.folder)

    def check(self) -> None:
        """Build every part once, so that a wrong key or a missing module is told before anything
        is written. Raises `UsageError` and its kinds."""
        spec = self.spec
        for module in spec.requires:
            package = module.partition(".")[0]
            if importlib.util.find_spec(package) is None:
                raise MissingDependency(
                    f"`{package}` (required by `{self.name}`)", f"pip install {package}"
                )
        for part in (*self._parts(), *filter(None, [spec.serve.reward])):
            self.build(part)
        if spec.command:
            resolve_command(spec.command, self.folder)

    def digest(self) -> str:
        """Hash of the workflow as resolved, with the Python and data files beside it and those that
        its parts name elsewhere."""
        state = hashlib.blake2b(digest_size=16)
        # What may change without changing a result: a budget can be raised to go on.
        prose = {"title", "claim", "faithful", "reduced", "seed_paper", "checks"}
        limits = {
            "budget", "schedule", "prices", "concurrency", "rate", "retries", "cache", "serve",
        }  # fmt: skip
        if not self.spec.fallbacks:
            limits.add("fallbacks")
        if not self.spec.command:
            limits.add("command")
        if self.spec.probes is None:
            limits.add("probes")
        if self.spec.world is None:
            limits.add("world")
        state.update(self.spec.model_dump_json(exclude=prose | limits).encode())
        for path in sorted(self.folder.iterdir()):
            of_agent = f"./{path.name}" in self.spec.command
            if (path.suffix in (".py", ".jsonl") or of_agent) and path.is_file():
                state.update(path.name.encode() + b"\0" + path.read_bytes())
        for path in sorted(self._named()):
            state.update(path.name.encode() + b"\0" + path.read_bytes())
        return state.hexdigest()

    def _parts(self) -> list[PartSpec]:
        """All that a cycle is made of."""
        spec = self.spec
        parts = [spec.tasks, spec.reward, spec.collect, spec.gate, *spec.lanes.values()]
        parts += filter(None, [spec.probes, spec.world])
        if spec.scripted is not None:
            parts += [spec.scripted.tasks, spec.scripted.reward or spec.reward]
        return parts

    def _named(self) -> set[Path]:
        """The Python and data files that parts name and that do not lie beside the workflow."""
        found = set()
        for part in self._parts():
            module = self.folder / part.use.rpartition(":")[0]
            values = _absolute(list(part.fields.values()), self.folder)
            for path in (module, *(Path(os.path.expanduser(text)) for text in _texts(values))):
                if path.suffix in (".py", ".jsonl") and os.path.isfile(path):  # raises for no text
                    found.add(path.resolve())
        return {path for path in found if path.parent != self.folder.resolve()}


def load(name: str, workspace: Workspace, overrides: Mapping[str, Json] | None = None) -> Loaded:
    """The workflow `name`, with `overrides` (dotted key -> value) applied before validation.

    Raises `UsageError` for unreadable YAML, `UnknownName` for unknown keys and names.
    """
    path = workspace.workflow(name)
    data = read_yaml(path)
    if isinstance(data, dict):
        for key, value in (overrides or {}).items():
            _set(data, key.split("."), value, str(path))
    return Loaded(path.parent.name, path, validate(data, _where(path)))


def read_yaml(path: Path) -> object:
    """Safely loaded YAML. Raises `UsageError` with the line of the fault."""
    where = _where(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}") from error
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(
            f"`{where}` has {len(text)} characters; at most {_MAX_CHARACTERS} are allowed"
        )
    try:
        _refuse_traps(text, where)
        data: object = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"`{where}`{line} is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UsageError(f"`{where}` is not valid YAML: {problem}") from error
    return data


def _refuse_traps(text: str, where: str) -> None:
    """Events are read one by one, so that deep nesting, on which the full parser is quadratic, and
    aliases, which can make a small file huge, are found before they cost anything."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(
                f"`{where}` line {line} uses a YAML alias (`*name`); write the value out instead"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise UsageError(
                f"`{where}` line {line} is nested deeper than {_MAX_DEPTH} levels; flatten it"
            )


def build(part: PartSpec, folder: Path) -> Any:
    """Instantiate a part from its reference and its keys."""
    cls = resolve(part.use, folder)
    if not callable(cls):
        raise UsageError(f"`{part.use}` is not a part (a class made with @part)")
    fields = {key: _absolute(value, folder) for key, value in part.fields.items()}
    try:
        return cls(**fields)
    except ValidationError as error:
        raise explain(error, part.use, cls if isinstance(cls, type) else type(cls)) from None
    except TypeError as error:
        raise UsageError(f"`{part.use}`: {error}") from error


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith("./"):
        return str(folder / value[2:])
    if isinstance(value, list):
        return [_absolute(one, folder) for one in value]
    if isinstance(value, dict):
        return {key: _absolute(one, folder) for key, one in value.items()}
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text within a field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _where(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _set(data: dict[str, Any], keys: list[str], value: Json, where: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise UsageError(f"`{'.'.join(keys)}` does not name a place in `{where}`")
    if value is None:
        data.pop(keys[-1], None)
    else:
        data[keys[-1]] = value
