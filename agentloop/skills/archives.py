"""Archives of skills: a .zip or .tar.gz in, its files by path out; files in, a .zip out.

Nothing is ever extracted: members are read into memory under caps, and a member that is no plain
file, or whose name could leave a folder, refuses the whole archive. Kinds are told by content, not
by the name of the file.
"""

from __future__ import annotations

import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.skills.paths import check_path, skipped

MAX_ARCHIVE, MAX_UNPACKED, MAX_MEMBERS = 32 * 2**20, 64 * 2**20, 4096
"""Bytes of an archive, of all it holds, and members."""
MAX_RATIO = 200
"""How much larger than the archive its content may be (from 1 MiB on, where it begins to matter);
text packs to a tenth."""
_BAD = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError,
    NotImplementedError, RuntimeError, ValueError, IndexError, KeyError, OverflowError, OSError,
)  # fmt: skip
_DIRECTORY_ENTRY = b"PK\x01\x02"


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of the archive by path. Raises `UsageError` for what is no archive, damaged, too
    large, or holds anything but plain files with safe names."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ARCHIVE + 1)
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror}") from error
    try:
        return unpack_archive(data)
    except UsageError as error:
        raise UsageError(f"`{path}` cannot be imported: {error}") from error


def unpack_archive(data: bytes) -> dict[str, bytes]:
    """The files of an archive that is in memory; raises as `read_archive` does."""
    if len(data) > MAX_ARCHIVE:
        raise UsageError(
            f"it is larger than {MAX_ARCHIVE >> 20} MiB; unpack it and give the folder"
        )
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        members = _zip(data)
    elif data[:2] == b"\x1f\x8b":
        members = _tar(data)
    else:
        raise UsageError("it is neither a .zip nor a .tar.gz; give one of these, or a folder")
    found: dict[str, bytes] = {}
    unpacked = 0
    try:
        for name, content in members:
            unpacked += len(content)
            _check_size(unpacked, len(data))
            if name in found:
                raise UsageError(f"it holds `{name}` twice")
            found[name] = content
    except UsageError:
        raise
    except _BAD as error:
        raise UsageError(f"it is damaged: {' '.join(str(error).split())[:120]}") from error
    return found


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the archive `path`; the same files give the same bytes. Raises `UsageError` for a bad
    name, when `path` is there and when it cannot be written."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            member = zipfile.ZipInfo(check_path(name))  # dated 1980
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    try:
        with path.open("xb") as file:
            file.write(packed.getvalue())
    except FileExistsError as error:
        raise UsageError(f"`{path}` exists; give another name") from error
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error.strerror}") from error


def _check_size(unpacked: int, packed: int) -> None:
    if unpacked > MAX_UNPACKED or (unpacked > 2**20 and unpacked > MAX_RATIO * packed):
        raise UsageError(
            f"it unpacks to more than {MAX_UNPACKED >> 20} MiB or {MAX_RATIO} times its size"
        )


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data.count(_DIRECTORY_ENTRY) > MAX_MEMBERS:  # before the library makes an object of each
        raise UsageError(f"it has more than {MAX_MEMBERS} members")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            name = member.orig_filename  # `filename` ends at a NUL
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & 1:
                raise UsageError(f"`{name[:80]!a}` is encrypted")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UsageError(f"`{name[:80]!a}` is no plain file")
            if not _wanted(name, folder=name.endswith("/") or kind == stat.S_IFDIR):
                continue
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UsageError(f"`{name}` is packed by a method that is not supported")
            _check_size(member.file_size, len(data))  # as declared; then as it is
            with archive.open(member) as file:
                yield name.removeprefix("./"), file.read(MAX_UNPACKED + 1)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    unpacker = zlib.decompressobj(wbits=31)
    content = unpacker.decompress(data, MAX_UNPACKED + 1)
    _check_size(len(content), len(data))
    if not unpacker.eof or unpacker.unused_data:
        raise UsageError("it is cut short, or more follows its end")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for count, member in enumerate(archive):
            if count == MAX_MEMBERS:
                raise UsageError(f"it has more than {MAX_MEMBERS} members")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise UsageError(f"`{member.name[:80]!a}` is no plain file")
            if _wanted(member.name, folder=member.isdir()):
                file = archive.extractfile(member)
                yield member.name.removeprefix("./"), b"" if file is None else file.read()


def _wanted(name: str, *, folder: bool) -> bool:
    """Whether a member is a file of a skill; raises `UsageError` when its name is not safe."""
    path = name.removeprefix("./")
    path = path.removesuffix("/") if folder else path
    if folder and path in ("", "."):
        return False
    if any(skipped(part) for part in path.split("/")) and ".." not in path.split("/"):
        return False
    check_path(path)
    return not folder
