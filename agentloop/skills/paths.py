"""Names and sizes of the files of a skill: what anyone may have sent goes in, what is safe to write
below any folder of any system comes out.

Decision: names are ASCII, so no two of them can look alike; what is hidden (`.git`, `.DS_Store`) or
a cache is passed over, as it is no part of a skill.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from agentloop.errors import UsageError

MAX_FILES, MAX_FILE, MAX_BYTES = 128, 2 * 2**20, 8 * 2**20
"""Files of one skill, bytes of one of them and of all; the specification sets none. They lie in the
log, so they are a tenth of what a log row may cost to read."""
_MAX_DEPTH, _MAX_PATH = 8, 240
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9 ._+@(),=-]{0,98}[A-Za-z0-9_+@()=-])?")
_DEVICES = re.compile(r"(?i:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")
_BINARY = "data:;base64,"
_SKIPPED = frozenset({"__pycache__", "__MACOSX"})


def skipped(part: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return part in _SKIPPED or (part.startswith(".") and not part.startswith("..") and part != ".")


def check_path(path: str) -> str:
    """`path` when it is a relative path of plain names between slashes. Raises `UsageError`."""
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or len(path) > _MAX_PATH:
        raise UsageError(
            f"`{_shown(path)}` is too long or too deep; at most {_MAX_PATH} characters and "
            f"{_MAX_DEPTH} levels are allowed"
        )
    for part in parts:
        if not _PART.fullmatch(part) or _DEVICES.fullmatch(part):
            raise UsageError(
                f"`{_shown(path)}` cannot name a file of a skill; use letters, digits and "
                "`_ - . +` in plain names between slashes, rename it"
            )
    return path


def collect(files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """The files by path, sorted. Raises `UsageError` for a name that is not safe, two that are one
    where case does not count, a file that is a folder as well, and for too much of anything."""
    found: dict[str, bytes] = {}
    taken: dict[str, str] = {}
    total = 0
    for path, data in files:
        check_path(path)
        total += len(data)
        if len(found) == MAX_FILES or len(data) > MAX_FILE or total > MAX_BYTES:
            raise UsageError(
                f"`{path}` is too much for a skill: at most {MAX_FILES} files, {MAX_FILE >> 20} "
                f"MiB each and {MAX_BYTES >> 20} MiB in all are allowed"
            )
        if path.casefold() in taken:
            raise UsageError(
                f"`{path}` and `{taken[path.casefold()]}` are one name where case does not count; "
                "rename one"
            )
        taken[path.casefold()] = path
        found[path] = data
    for path in found:
        parts = path.casefold().split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in taken:
                raise UsageError(f"`{'/'.join(parts[:end])}` is both a file and a folder")
    return dict(sorted(found.items()))


def pack(data: bytes) -> str:
    """The content of a file as a record holds it: UTF-8 text as it stands, so that it can be read
    and redacted; anything else as a data URL (RFC 2397)."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.encode() != data or "\0" in text or text.startswith(_BINARY):
        return _BINARY + base64.b64encode(data).decode()
    return text


def unpack(text: str) -> bytes:
    """The bytes that were packed. Raises `UsageError` when it is not base64."""
    if not text.startswith(_BINARY):
        return text.encode(errors="replace")
    try:
        return base64.b64decode(text.removeprefix(_BINARY), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"a file of the skill is damaged: {error}; import it again") from error


def _shown(path: str) -> str:
    return path.encode("unicode_escape", "replace").decode()[:80]
