"""What secrets look like: the shapes that are replaced in a text, and what gives them away.

In: a string, out: the spans to replace, each with the name of its kind. Two families: provider keys
have a prefix of their own and are found anywhere; passwords and the like are found by what stands
before them (`password=`, `Authorization:`, `://user:`) and must look random, so that code and prose
about passwords stay as they are. Repetitions that may fail are bounded: no text, however hostile,
takes more than linear time. `MARKS` are four characters of which one must be in any text that
has a shape: the cheap test in `secret_scan` looks for nothing else.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int, str]
"""(start, end, name) of what is to be replaced."""

_TOKEN = "[A-Za-z0-9_-]"
_KEYS = {
    "sk_key": rf"\bsk-(?={_TOKEN}{{0,200}}\d)(?:\w{{1,32}}-){{0,8}}\w{{16,}}{_TOKEN}*"
    r"|\b[sr]k_(?:live|test)_\w{16,}",
    "github_token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}",
    "gitlab_token": rf"\bgl(?:pat|ptt|dt|rt)-{_TOKEN}{{20,}}",
    "aws_key_id": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "google_key": rf"\bAIza{_TOKEN}{{35}}|\bya29\.{_TOKEN}{{20,}}|\bGOCSPX-{_TOKEN}{{20,}}",
    "slack_token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{20,}",
    "webhook": r"(?:hooks\.slack\.com/(?:services|workflows|triggers)"
    r"|webhook\.office\.com/webhookb2|discord(?:app)?\.com/api/webhooks)/(?:[\w@.-]{1,80}/){0,6}[\w@-]{16,}",
    "huggingface_token": r"\bhf_[A-Za-z0-9]{30,}",
    "stripe_secret": r"\bwhsec_[A-Za-z0-9]{24,}",
    "sendgrid_key": rf"\bSG\.{_TOKEN}{{16,64}}\.{_TOKEN}{{16,}}",
    "twilio_key": r"\bSK[0-9a-f]{32}\b",
    "npm_token": r"\bnpm_[A-Za-z0-9]{36}",
    "pypi_token": rf"\bpypi-{_TOKEN}{{50,}}",
    "docker_token": rf"\bdckr_pat_{_TOKEN}{{20,}}",
    "digitalocean_token": r"\bdo[opr]_v1_[a-f0-9]{64}",
    "shopify_token": r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    "databricks_token": r"\bdapi[a-f0-9]{32}",
    "vault_token": rf"\bhv[sb]\.{_TOKEN}{{20,}}",
    "telegram_token": rf"\b\d{{8,10}}:AA{_TOKEN}{{32,}}",
    "age_key": r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,}",
    "groq_key": r"\bgsk_[A-Za-z0-9]{40,}",
    "xai_key": r"\bxai-[A-Za-z0-9]{40,}",
    "perplexity_key": r"\bpplx-[A-Za-z0-9]{40,}",
    "replicate_token": r"\br8_[A-Za-z0-9]{36,}",
    "notion_token": r"\bntn_[A-Za-z0-9]{40,}",
    "linear_key": r"\blin_api_[A-Za-z0-9]{32,}",
    "mailgun_key": r"\bkey-[0-9a-f]{32}\b",
    "newrelic_key": r"\bNRAK-[A-Z0-9]{27}",
    "grafana_token": r"\bglsa_\w{32,}",
    "atlassian_token": r"\bATATT3[\w=-]{50,}",
    "jwt": rf"\beyJ{_TOKEN}{{8,2000}}\.eyJ{_TOKEN}{{8,}}\.{_TOKEN}+",
    # A block that was cut off before its end is a secret all the same.
    "private_key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
}
BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\:,.]*"
    r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
)
"""A private key that has its end, with nothing but its letters and plain words between."""
KEY = re.compile("|".join(f"(?P<{name}>{shape})" for name, shape in _KEYS.items()))

_QUOTE = r"[\"'\\]*"
_SET = rf"{_QUOTE}\s*(?:=>|[:=])\s*{_QUOTE}"
_VALUE = r"[^\s\"'\\,;<>(){}\[\]&$`]{8,}"
_NAMES = (
    r"pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|account|auth|private|secret|signing"
    r"|encryption)[_-]?key|(?<=[?&])(?:key|sig|signature)"
)
_CONTEXT = re.compile(
    rf"\bbearer\s+(?P<bearer_token>[A-Za-z0-9._~+/=-]{{16,}})"
    rf"|\bbasic\s+(?P<basic_auth>[A-Za-z0-9+/]{{8,}}={{0,2}})"
    rf"|\bauthorization{_SET}(?:[A-Za-z-]+\s+)?(?P<authorization>[A-Za-z0-9._~+/=:-]{{16,}})"
    rf"|\bcookie{_SET}(?P<cookie>[\w.-]+=[^\s\"'\\;]*(?:;\s*[\w.-]+=[^\s\"'\\;]*)*)"
    rf"|(?:{_NAMES}){_SET}(?P<secret>{_VALUE})"
    r"|://[^\s/:@\"'\\<>]*:(?P<url_password>[^\s/@\"'\\<>]{3,})@"
    rf"|://(?P<url_token>{_TOKEN}{{20,}})(?::[^\s/@\"'\\<>]*)?@",
    re.IGNORECASE,
)
_NAMED = re.compile(rf"(?:{_NAMES}|authorization|cookie)\Z", re.IGNORECASE)
_EXACT = (
    "sk- sk_ rk_ ghp_ gho_ ghu_ ghs_ ghr_ hub_ glpa glpt gldt glrt AKIA ASIA AIza ya29 GOCS xoxa "
    "xoxb xoxe xoxp xoxr xoxs xapp hf_ whse SG. npm_ ypi- dckr op_v oo_v or_v shpa shpc shpp shps "
    "dapi hvs. hvb. :AA T-KE gsk_ xai- pplx r8_ ntn_ _api key- NRAK glsa ATAT eyJ"
)
_BEGINNINGS = (*_EXACT.split(), "E KE", "SK", "hook")
"""What one of stands in every text that has a key with a prefix of its own."""
_TELLING = ("bearer", "basic", "authorization", "cookie", "pass", "pwd", "secret", "token", "key",
            "sig", "://")  # fmt: skip
"""What one of stands, in small letters, before every secret that its context tells."""
_FOLDED = (
    "rer|sic|hori|kie|kie:|kie=|kie\"|kie'|sswo|sswd|sphr|pwd|pwd=|pwd:|pwd\"|pwd'|secr"
    "|ken|ken=|ken:|ken\"|ken'|pi_k|pi-k|pike|s_ke|s-ke|sske|ntke|t_ke|t-ke|e_ke|e-ke|teke"
    "|h_ke|h-ke|thke|g_ke|g-ke|ngke|n_ke|n-ke|ionk|?key|&key|sig=|ure=|hook"
)
_WORD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_SPACE = " \t\\\n\r"
_EITHER = {one: one for one in ":='&?_-"} | {'"': '"\x7f'}
"""What is no letter; between a name and its value a quote, or in msgpack a byte that is not ASCII,
for which `\x7f` stands."""


def marks() -> Iterator[tuple[str, str, str, str]]:
    """Four sets of characters each: what one of stands in every text that has a shape."""
    yield "E", " ", "K", "E"  # PRIVATE KEY
    yield "%", "0234", "0123456789abcdefABCDEF", _WORD + "%."  # any of it, written for an address
    for name in "SK", "sk":
        yield name[0], name[1], "0123456789abcdef", "0123456789abcdef"
    for mark in _EXACT.split():
        first, second, third, fourth = (*mark, *[_WORD] * (4 - len(mark)))
        yield first, second, third, fourth
    for mark in _FOLDED.split("|"):
        both = [_EITHER.get(one, one.lower() + one.upper()) for one in mark]
        first, second, third, fourth = (*both, *[_SPACE] * (4 - len(both)))
        yield first, second, third, fourth


def spans(text: str) -> Iterator[Span]:
    """The secrets in `text` by shape, in any order; they may overlap."""
    if any(map(text.__contains__, _BEGINNINGS)):  # a hundredth of what the expressions cost
        for found in KEY.finditer(text):
            yield found.start(), found.end(), str(found.lastgroup)
    if any(map(text.lower().__contains__, _TELLING)):
        yield from _told(text)


def _told(text: str) -> Iterator[Span]:
    """The secrets that what stands before them tells."""
    for found in _CONTEXT.finditer(text):
        name = str(found.lastgroup)
        value = found[name]
        after = text[found.end(name) : found.end(name) + 1]
        if name == "basic_auth":
            secret = _names_a_user(value)
        elif name in ("url_password", "url_token"):
            secret = True
        elif name == "cookie":
            secret = any(map(_random, re.split(r";\s*|=", value)))
        else:
            secret = after not in ("(", "[") and _random(value)
        if secret:
            yield found.start(name), found.end(name), name


def names_one(key: str) -> bool:
    """Whether `key` is a name that tells what stands after it to be a secret."""
    return _NAMED.search(key) is not None


def entry_spans(key: str, text: str) -> Iterator[Span]:
    """The secrets in `text` that are told by the key that it stands under in an object, as by the
    name in an assignment."""
    before = f"{key}="
    for start, end, name in spans(before + text):
        if start >= len(before):
            yield start - len(before), end - len(before), name


def _random(value: str) -> bool:
    """Whether a value looks chosen at random: of letters and of digits or signs, not a name with a
    number, with at least 2.5 bits of entropy a character (eight characters have at most 3)."""
    letters = any(one.isalpha() for one in value)
    others = any(one.isdigit() or one in "!@#%^*+/=~?|" for one in value)
    if not (letters and others) or len(value) < 8:
        return False
    if re.fullmatch(r"[A-Za-z_.-]*\d{0,3}|[+-]?[\d.]+(?:[eE][+-]?\d+)?|\W*", value):
        return False
    counts = Counter(value).values()
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
    return entropy >= 2.5


def _names_a_user(value: str) -> bool:
    """Whether this is `user:password` in base64, as basic authentication sends it."""
    try:
        text = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    return ":" in text and text.isprintable()
