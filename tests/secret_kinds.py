"""Made-up secrets of 28 kinds, places where they turn up, and 5,000 texts that have none."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

UPPER, DIGITS = string.ascii_uppercase, string.digits
ALNUM = string.ascii_letters + DIGITS
HEX = "0123456789abcdef"
B64 = ALNUM + "+/"
Dice = random.Random
_PROSE = """the token budget of a model is the number of tokens that it may sample before a key
decision is taken and the secret of good prose is to pass the password to no one while basic
arithmetic and concrete examples are taken as authority for a cookie recipe"""


def _text(dice: Dice, n: int, letters: str = ALNUM) -> str:
    """Letters of which the second is a digit, so that a short one has both."""
    made = "".join(dice.choices(letters, k=n))
    return made[0] + dice.choice(DIGITS) + made[2:] if set(DIGITS) <= set(letters) else made


def _jwt(dice: Dice) -> str:
    head, body = ({"alg": "HS256", "kid": _text(dice, 6)}, {"sub": _text(dice, 12)})
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=")
             for p in (head, body)]  # fmt: skip
    return ".".join((*parts, _text(dice, 43)))


def _pem(dice: Dice) -> str:
    kind = dice.choice(["RSA ", "EC ", "", "OPENSSH "])
    lines = "\n".join(_text(dice, 64, B64) for _ in range(3))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def _basic(dice: Dice) -> str:
    return base64.b64encode(f"user{_text(dice, 2)}:{_text(dice, 14)}".encode()).decode()


KINDS: dict[str, tuple[Callable[[Dice], str], str]] = {
    # kind: (how it is made, the text in which it is known for what it is)
    "openai": (lambda d: "sk-proj-" + _text(d, 40), "{}"),
    "anthropic": (lambda d: "sk-ant-api03-" + _text(d, 60), "{}"),
    "github": (lambda d: "ghp_" + _text(d, 36), "{}"),
    "github_pat": (lambda d: "github_pat_" + _text(d, 22) + "_" + _text(d, 59), "{}"),
    "gitlab": (lambda d: "glpat-" + _text(d, 20), "{}"),
    "aws_id": (lambda d: "AKIA" + _text(d, 16, UPPER + DIGITS), "{}"),
    "aws_secret": (lambda d: _text(d, 40, B64), "aws_secret_access_key = {}"),
    "google": (lambda d: "AIza" + _text(d, 35), "{}"),
    "google_oauth": (lambda d: "ya29." + _text(d, 60), "{}"),
    "slack": (lambda d: f"xoxb-{_text(d, 12, DIGITS)}-{_text(d, 24)}", "{}"),
    "slack_webhook": (
        lambda d: f"T{_text(d, 8, UPPER)}/B{_text(d, 8, UPPER)}/{_text(d, 24)}",
        "https://hooks.slack.com/services/{}",
    ),
    "discord_webhook": (
        lambda d: f"{_text(d, 18, DIGITS)}/{_text(d, 68)}", "https://discord.com/api/webhooks/{}"
    ),
    "huggingface": (lambda d: "hf_" + _text(d, 34, string.ascii_letters), "{}"),
    "jwt": (_jwt, "{}"),
    "pem": (_pem, "{}"),
    "stripe": (lambda d: "sk_live_" + _text(d, 24), "{}"),
    "sendgrid": (lambda d: f"SG.{_text(d, 22)}.{_text(d, 43)}", "{}"),
    "npm": (lambda d: "npm_" + _text(d, 36), "{}"),
    "pypi": (lambda d: "pypi-AgEIcHlwaS5vcmc" + _text(d, 60), "{}"),
    "telegram": (lambda d: f"{_text(d, 10, DIGITS)}:AA{_text(d, 33)}", "{}"),
    "vault": (lambda d: "hvs." + _text(d, 90), "{}"),
    "url_password": (lambda d: _text(d, 16), "https://deploy:{}@git.example.org/repo.git"),
    "database": (lambda d: _text(d, 20), "postgresql://app:{}@db.internal:5432/prod"),
    "connection_string": (
        lambda d: _text(d, 86, B64) + "==",
        "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={};EndpointSuffix=x",
    ),
    "bearer": (lambda d: _text(d, 40), "Authorization: Bearer {}"),
    "basic": (_basic, "Authorization: Basic {}"),
    "cookie": (lambda d: _text(d, 32), "Cookie: theme=dark; sessionid={}"),
    "password": (lambda d: _text(d, 12) + "!" + _text(d, 2), "password: {}"),
}  # fmt: skip


def secrets(n: int, seed: int) -> list[tuple[str, str, str]]:
    """`n` of (kind, secret, the text it is known by), the kinds in turn."""
    dice = Dice(seed)
    made = []
    for kind, (make, frame) in [*KINDS.items()] * (n // len(KINDS) + 1):
        secret = make(dice)
        made.append((kind, secret, frame.format(secret)))
    return made[:n]


PLACES: dict[str, Callable[[str], object]] = {
    "prompt": lambda t: {"role": "user", "content": f"Please use {t} for the deployment."},
    "arguments": lambda t: {"tool_calls": [{"name": "run", "arguments": {"code": f"x\n{t}\n"}}]},
    "arguments as text": lambda t: {"function": {"arguments": json.dumps({"code": f"{t}\n"})}},
    "result": lambda t: {"role": "tool", "content": f"exit code 0\nstdout:\n{t}\ndone"},
    "exception": lambda t: {"failure": {"detail": f"HTTPError: 401 for {t} (not allowed)"}},
    "url": lambda t: {"text": f"GET https://example.org/v1?q={quote(t, safe='')}&page=2"},
    "header": lambda t: {"headers": [["x-request-id", "7"], ["x-debug", f"{t}"]]},
    "trace": lambda t: (
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n'
        f"    connect({t!r})\nValueError: cannot connect"
    ),
    "base64": lambda t: {"blob": base64.b64encode(f"user {t} end".encode()).decode()},
    "base64 alone": lambda t: {"blob": f"see {base64.b64encode(t.encode()).decode()}"},
    "key": lambda t: {f"{t}": 1},
}


def forms(secret: str, text: str) -> list[bytes]:
    """All that must not be found in a file: the secret as it is, and as the places above and JSON
    write it."""
    once = json.dumps(secret)[1:-1]
    inner = base64.b64encode(secret.encode()).decode()[: len(secret) * 8 // 6 - 1]
    coded = {base64.b64encode(one.encode()).decode() for one in (text, f"user {text} end")}
    found = {secret, once, json.dumps(once)[1:-1], quote(secret, safe=""), inner, *coded}
    return [form.encode() for form in found]


def benign(n: int, seed: int) -> Iterator[str]:
    """`n` texts without a secret: hashes, identifiers, code, numbers, mathematics, prose, paths,
    logs and images."""
    dice = Dice(seed)
    words = _PROSE.split()
    code = [
        "token = tokenizer.decode(ids[{n}])", "password = getpass.getpass('Password: ')",
        "api_key = os.environ['OPENAI_API_KEY']", "secret = hashlib.sha256(b'{n}').hexdigest()",
        "def key(item): return item.key_{n}", "for token in tokens[:{n}]: print(token)",
        "headers = {{'Authorization': f'Bearer {{token}}'}}", "assert user.password is None",
        "cache_key = f'{{name}}-{{version}}-{n}'", "self.token_{n} = self.next_token()",
        "x = sorted(d, key=lambda p: p[1])[{n}]", "token: CancellationToken = field(default=None)",
        "curl -H 'Authorization: Bearer $TOKEN' https://example.org/{n}",
        "password: str | None = None  # see line {n}", "import secrets; secrets.token_hex({n})",
        "SELECT password_hash FROM users WHERE id = {n}", "export API_KEY=<your key here>",
        "git clone https://github.com/acme/repo-{n}.git", "pip install scikit-learn=={n}.0.1",
        "from sk_learn_compatible_estimators_v{n} import fit", "mailto:user{n}@example.org",
    ]  # fmt: skip
    makers: list[Callable[[int], str]] = [
        lambda n: hashlib.sha256(str(n).encode()).hexdigest(),
        lambda n: hashlib.sha1(str(n).encode()).hexdigest(),
        lambda n: f"commit {hashlib.sha1(str(n).encode()).hexdigest()} by agent {n}",
        lambda n: str(uuid.UUID(int=dice.getrandbits(128))),
        lambda n: dice.choice(code).format(n=n),
        lambda n: "\n".join(line.format(n=n) for line in dice.sample(code, 3)),
        lambda n: " ".join(str(dice.uniform(-1e6, 1e6)) for _ in range(8)),
        lambda n: f"token_id={dice.randrange(10**6)} logprob=-{dice.random():.16f} step={n}",
        lambda n: f"$\\sum_{{k=1}}^{{{n}}} k^2 = {n * (n + 1) * (2 * n + 1) // 6}$",
        lambda n: " ".join(dice.choices(words, k=30)).capitalize() + ".",
        lambda n: f"/usr/lib/python3.11/site-packages/agentloop/trajectories/part_{n}.py:{n}",
        lambda n: "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n" + dice.randbytes(600)).decode(),
        lambda n: f"ep-{dice.getrandbits(64):016x} bundle-{dice.getrandbits(64):016x}",
        lambda n: f"2026-11-22T22:{n % 60:02d}:00Z INFO worker-{n} took {dice.random():.3f} s",
        lambda n: json.dumps({"role": "user", "token_ids": [n] * 5, "key": f"step/{n}"}),
        lambda n: f"sha256:{dice.randbytes(32).hex()} integrity sha512-"
        + base64.b64encode(dice.randbytes(64)).decode(),
    ]  # fmt: skip
    for number in range(n):
        yield makers[number % len(makers)](number)
