"""A static look at a skill: its files in, findings out, as advice to whoever reviews it.

Advice, never a control: what it does not see is not safe, and what it sees may be meant well. The
sandbox is what keeps code from harm. Nothing is run; Python is read as a syntax tree, all else line
by line.
"""

from __future__ import annotations

import ast
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice

from agentloop.records import Skill, record

MAX_FINDINGS = 100
_SAFE = frozenset(
    """abc array bisect calendar cmath collections colorsys copy csv dataclasses datetime decimal
    difflib enum fractions functools graphlib hashlib heapq hmac html itertools json keyword math
    numbers operator pprint random re secrets statistics string textwrap time types typing
    unicodedata uuid zoneinfo __future__""".split()  # noqa: SIM905
)
_MODULES = {
    "network": "socket ssl http urllib ftplib smtplib imaplib poplib telnetlib xmlrpc socketserver "
    "asyncio requests httpx aiohttp websockets paramiko dns",
    "process": "subprocess multiprocessing pty signal sched threading concurrent",
    "host": "os sys shutil pathlib tempfile glob platform pwd grp getpass resource io fcntl mmap",
    "loader": "importlib pickle marshal shelve dill ctypes cffi code codeop runpy imp zipimport "
    "pkgutil builtins gc inspect",
    "hidden": "base64 binascii zlib codecs bz2 lzma",
}
_KIND_OF = {module: kind for kind, names in _MODULES.items() for module in names.split()}
_CALLS = frozenset(
    """eval exec compile __import__ open input globals locals vars getattr setattr delattr
    breakpoint""".split()  # noqa: SIM905
)
_ATTRIBUTES = frozenset(
    """__subclasses__ __globals__ __builtins__ __code__ __mro__ __bases__ __reduce__ environ
    f_back f_globals gi_frame cr_frame tb_frame""".split()  # noqa: SIM905
)
_LINES = (
    ("network", r"\b(?:curl|wget|nc|ncat|ssh|scp|rsync|telnet)\s+\S|/dev/tcp/|\bInvoke-Web"),
    ("network", r"https?://(?!agentskills\.io)[^\s)\"'>]{3,200}"),
    ("process", r"\|\s*(?:ba|z|da)?sh\b|\b(?:bash|sh|python3?|perl|node)\s+-[ce]\b|\bsudo\s"),
    ("process", r"\brm\s+-\w*[rf]|\bchmod\s+\S|\bchown\s+\S|\bmkfifo\s"),
    ("environment", r"\$\{?[A-Z_]*(?:KEY|TOKEN|SECRET|PASSWORD)\b|\bprintenv\b|process\.env\b"),
    ("host", r"(?:~|\$HOME|/root|/home/\w+)/\.|/etc/(?:passwd|shadow)|\.ssh/|\.aws/|\.netrc\b"),
    ("persistence", r"\bcrontab\b|/etc/cron|systemctl\s|\.bashrc\b|\.profile\b|\bLaunchAgents\b"),
    ("dependency", r"\b(?:pip3?|uv|npm|pnpm|yarn|gem|cargo|go)\s+(?:pip )?(?:install|add|get|i)\b"),
    ("dependency", r"--(?:extra-)?index-url|--registry|git\+https?:|\bnpx\s|\buvx\s"),
    ("hook", r"\"(?:pre|post)?(?:install|prepare|pack|publish)\"\s*:|\bcmdclass\b|^\s*!`"),
    (
        "instruction",
        r"(?i)\b(?:ignore|disregard|forget)\b.{0,30}\b(?:previous|prior|above|earlier)",
    ),
    ("instruction", r"(?i)\b(?:do not|don't|never)\s+(?:tell|mention|inform|show|reveal)\b"),
    ("instruction", r"(?i)\b(?:send|upload|post|exfiltrate)\b.{0,60}\b(?:key|token|secret|passw)"),
    ("hidden", r"[A-Za-z0-9+/=_-]{120,}|(?:\\x[0-9a-fA-F]{2}){16,}|(?:[0-9a-fA-F]{2}){64,}"),
    ("hidden", r"<!--|\[//\]:\s*#"),
)
_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _LINES]
_HOOKS = re.compile(
    r"(?:^|/)(?:setup\.py|setup\.cfg|pyproject\.toml|conftest\.py|sitecustomize\.py|usercustomize\.py"
    r"|package\.json|Makefile|build\.rs|binding\.gyp|hooks?(?:/.*|\.json)|settings\.json)$|\.pth$"
)
_WIDE = 2000
"""Characters of a line that are looked at from each end: nobody writes longer ones by hand."""


@record
class Finding:
    """Something that a reviewer should look at."""

    path: str
    line: int
    """From 1; 0 is the file as a whole."""
    kind: str
    """One of network, process, host, loader, environment, import, code, hidden, hook, dependency,
    persistence, instruction, syntax, binary."""
    detail: str


def scan(skill: Skill) -> list[Finding]:
    """What to look at in a skill, file by file in order of place; the first hundred."""
    found = dict.fromkeys(_each(skill))
    return sorted(islice(found, MAX_FINDINGS), key=lambda one: (one.path, one.line, one.kind))


def _each(skill: Skill) -> Iterator[Finding]:
    files: Mapping[str, str] = {"SKILL.md": skill.document, **skill.files}
    for path, text in files.items():
        if _HOOKS.search(path):
            yield _finding(path, 0, "hook", "a file that tools run or obey by its name")
        if text.startswith("data:;base64,"):
            yield _finding(path, 0, "binary", "no text; nobody has looked into it")
            continue
        yield from _lines(path, text)
        if path.endswith((".py", ".pyw")):
            yield from _python(path, text)
        elif path.endswith(".md"):
            for before, code in _blocks(text):
                yield from _python(path, code, before)


def _lines(path: str, text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > 2 * _WIDE:
            yield _finding(path, number, "hidden", f"a line of {len(line)} characters")
            line = f"{line[:_WIDE]} {line[-_WIDE:]}"
        for kind, pattern in _PATTERNS:
            if match := pattern.search(line):
                yield _finding(path, number, kind, match.group())
        if line.isascii():
            continue
        unseen = sorted({c for c in line if unicodedata.category(c) in ("Cf", "Co", "Cn")})
        if unseen:
            names = ", ".join(f"U+{ord(c):04X}" for c in unseen[:5])
            yield _finding(path, number, "hidden", f"characters that are not seen: {names}")
        if path.endswith(".py") and _mixed(line):
            yield _finding(path, number, "hidden", "letters of two scripts in one word")


def _mixed(line: str) -> bool:
    """Whether a word has Latin letters and others: most often look-alikes."""
    for word in re.findall(r"\w+", line):
        scripts = {unicodedata.name(c, "?").partition(" ")[0] for c in word if c.isalpha()}
        if "LATIN" in scripts and scripts & {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}:
            return True
    return False


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(lines before it, code) of each Python block of a Markdown text."""
    for block in re.finditer(r"^```(?:python|py)[ \t]*\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, block.start(1)), block.group(1)


def _python(path: str, text: str, before: int = 0) -> Iterator[Finding]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield _finding(path, before, "syntax", f"not Python: {type(error).__name__}")
        return
    for node in ast.walk(tree):
        for kind, detail in _node(node):
            yield _finding(path, before + getattr(node, "lineno", 0), kind, detail)


def _node(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        names = [one.name for one in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for module in () if relative else names:
            top = module.partition(".")[0]
            if top in _KIND_OF:
                yield _KIND_OF[top], f"import {module}"
            elif top not in sys.stdlib_module_names:
                yield "dependency", f"import {module}, which is no part of Python: whose is it?"
            elif top not in _SAFE:
                yield "import", f"import {module}"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield "code", f"{node.func.id}()"
    elif isinstance(node, ast.Name) and node.id in ("__builtins__", "__loader__", "__spec__"):
        yield "code", node.id
    elif isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES:
        yield "environment" if node.attr == "environ" else "code", f".{node.attr}"


def _finding(path: str, line: int, kind: str, detail: str) -> Finding:
    flat = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in detail)
    return Finding(path=path, line=line, kind=kind, detail=flat[:120])
