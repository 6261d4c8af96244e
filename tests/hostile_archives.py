"""Archives that try to write where they should not, or to cost more than they may."""

import gzip
import io
import stat
import tarfile
import zipfile

DOCUMENT = b"---\nname: a\ndescription: d\n---\n\nbody\n"
NAMES = [
    "../x", "../../x", "scripts/../../x", "a/../../x", "..", ".", "/x", "/etc/cron.d/x", "//x",
    "scripts//x", "~/x", "~root/x", "$HOME/x", "${HOME}/x", "`id`", "x;y", "x|y", "x\x00y",
    "x\x00/../y",
    "..\\x", "scripts\\..\\..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "con", "scripts/NUL.txt",
    "aux.py", "COM1", "lpt9.md", "%2e%2e/x", "%2e%2e%2fx", "..%c0%afx", "..\uff0fx",
    "..\u2215x", "\u2024\u2024/x", "\u202egpj.x", "x.", "x ", "scripts./x", "x\ny", "x\ty",
    "x\x7f", "x\x1b[2Jy", "x" * 300, "/".join("d" * 12), "-rf", "x:stream", "x*", "x?", "x<y",
    '"x"',
    "\u0430.py", "e\u0301.py", "\u200bx", " x", "scripts/ /x",
]  # fmt: skip
"""Each a name of a member."""


def a_zip(*members: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644) -> bytes:
    """A .zip of these members, after a valid SKILL.md."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/SKILL.md", DOCUMENT)
        for name, data in members:
            member = zipfile.ZipInfo("x")
            member.filename = member.orig_filename = name
            member.external_attr = mode << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def a_tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A .tar.gz of these members, after a valid SKILL.md."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as archive:
        for member, data in ((info("a/SKILL.md"), DOCUMENT), *members):
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def through_long_links() -> bytes:
    """Links so long that resolving them gives up, and a file through the last: the way past the
    filters of a tar library, of 2025."""
    members = []
    deep, step = "a", "d" * 247
    for letter in "abcdefghijklmnop":
        members.append((info(f"{deep}/{step}", tarfile.DIRTYPE), b""))
        members.append((info(f"{deep}/{letter}", tarfile.SYMTYPE, step), b""))
        deep += f"/{step}"
    short = "a/" + "/".join("abcdefghijklmnop")
    members.append((info(f"{short}/{'l' * 254}", tarfile.SYMTYPE, "../" * 16), b""))
    members.append((info("a/escape", tarfile.SYMTYPE, f"{short}/{'l' * 254}/../../x"), b""))
    members.append((info("a/hard", tarfile.LNKTYPE, "a/escape"), b""))
    members.append((info("a/hard"), b"written through the link"))
    return a_tar(*members)


def overlapping() -> bytes:
    """A .zip of 100 names for the same 4 MiB of zeros."""
    out = io.BytesIO(a_zip(("a/x0", bytes(4 << 20))))
    with zipfile.ZipFile(out, "a") as archive:
        one = archive.getinfo("a/x0")
        for number in range(1, 100):
            again = zipfile.ZipInfo(f"a/x{number}")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(again, field, getattr(one, field))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    return out.getvalue()


def many_headers() -> bytes:
    """A .tar.gz of extended headers alone, each of which a reader may open by recursion."""
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.XHDTYPE, 512
    block = header.tobuf() + b"10 path=b\n".ljust(512, b"\0")
    return gzip.compress(block * 3000)


KINDS = {
    "symlink": a_tar((info("a/x", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "symlink-up": a_tar((info("a/x", tarfile.SYMTYPE, "../.."), b""), (info("a/x/y"), b"y")),
    "hardlink": a_tar((info("a/x", tarfile.LNKTYPE, "/etc/passwd"), b"")),
    "fifo": a_tar((info("a/x", tarfile.FIFOTYPE), b"")),
    "character device": a_tar((info("a/x", tarfile.CHRTYPE), b"")),
    "block device": a_tar((info("a/x", tarfile.BLKTYPE), b"")),
    "unknown kind": a_tar((info("a/x", b"Z"), b"z")),
    "long links": through_long_links(),
    "many headers": many_headers(),
    "zip symlink": a_zip(("a/x", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
    "zip fifo": a_zip(("a/x", b""), mode=stat.S_IFIFO | 0o644),
    "zip device": a_zip(("a/x", b""), mode=stat.S_IFCHR | 0o644),
    "zip of 4 GiB": a_zip(("a/x", b"x" * 7777)).replace(b"\x61\x1e\0\0", b"\xf0\xff\xff\xff"),
    "zip bomb": a_zip(("a/x", bytes(8 << 20))),
    "tar bomb": a_tar((info("a/x"), bytes(8 << 20))),
    "gzip bomb": gzip.compress(bytes(70 << 20), 1),
    "overlapping zip": overlapping(),
    "too many in a zip": a_zip(*((f"a/{number}", b"") for number in range(5000))),
    "too many in a tar": a_tar(*((info(f"a/{number}"), b"") for number in range(5000))),
    "too many for a skill": a_zip(*((f"a/{number}", b"") for number in range(200))),
    "one name in two cases": a_zip(("a/x.py", b""), ("a/X.py", b"")),
    "a file that is a folder": a_zip(("a/x", b""), ("a/x/y", b"")),
    "the same twice": a_tar((info("a/x"), b"1"), (info("a/x"), b"2")),
    "cut short": a_tar((info("a/x"), bytes(range(256)) * 40))[:-40],
    "garbage": b"PK\x03\x04" + bytes(200),
    "nothing": b"",
    "text": b"hello",
    "nested": a_zip(("a/SKILL.md/x", b"")),
}
"""Archives by what is wrong with them."""
