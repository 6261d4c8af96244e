"""Resolve `pkg.mod:Name` and `./parts.py:Name` to an object: the only plug-in mechanism.

A file reference is loaded once per resolved path under a private module name, so two folders may
each hold a `parts.py`. Errors say what was tried. A workflow file is code: never load one that
you would not run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from agentloop.errors import MissingDependency, UnknownName, UsageError


def resolve(reference: str, base: Path | None = None) -> object:
    """The object that `reference` names; a path in it is relative to `base` (default: here).

    Raises `UsageError` when the module or file is not there or fails to import, `UnknownName`
    when it lacks the name, `MissingDependency` when one of its imports is not installed.
    """
    module_name, colon, name = reference.rpartition(":")
    if not colon or not module_name or not name:
        raise UsageError(
            f"`{reference}` is not a reference; write `package.module:Name` or `./file.py:Name`"
        )
    if module_name.endswith(".py"):
        module = load_file((base or Path.cwd()) / module_name)
    else:
        module = _import(module_name, reference)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UnknownName(f"name in `{module_name}`", name, public) from None


class _Source(SourceFileLoader):
    """Compiles what is in the file now. The usual cache goes by size and second of change, and
    misses an edit that keeps both."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file as it is."""
        return self.source_to_code(self.get_data(self.path), self.path)


def load_file(path: Path) -> ModuleType:
    """Import a Python file under a private name, once per path and content."""
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist; a file reference is `./file.py:Name`")
    digest = hashlib.blake2b(str(path).encode() + path.read_bytes(), digest_size=8).hexdigest()
    name = f"_agentloop_ref_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"`{path}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ImportError):
            raise _missing(error, str(path)) from error
        if isinstance(error, Exception):
            raise UsageError(f"`{path}` failed while loading: {error!r}") from error
        raise
    return module


def _import(module_name: str, reference: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:  # a user's own package beside their workflow
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(f"`{reference}`: there is no module `{error.name}`") from error
        raise _missing(error, reference) from error


# Which extra brings a module that may be absent.
_EXTRAS = {
    "torch": "local", "transformers": "local", "trl": "local", "peft": "local",
    "safetensors": "local", "math_verify": "local", "litellm": "api", "docker": "docker",
}  # fmt: skip


def _missing(error: ImportError, what: str) -> UsageError:
    module = (error.name or "").partition(".")[0]
    if module in _EXTRAS:
        return MissingDependency(
            f"`{module}` (needed by `{what}`)", f'pip install "agentloop[{_EXTRAS[module]}]"'
        )
    return UsageError(f"`{what}` could not be imported: {error}")
