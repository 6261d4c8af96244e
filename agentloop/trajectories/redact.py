"""Any JSON value in, the same value out with secrets replaced by `[redacted:NAME]`.

Two detectors: exact values of known secrets (variables of the environment whose names look like
keys) and the shapes of common provider keys. The log applies it on its single write path, so that
nothing stored, indexed, exported or trained on can carry what it caught.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from agentloop.records import Json

MIN_LENGTH = 8
"""Shorter values of the environment are too common as words to be replaced everywhere."""

_SECRET_NAME = re.compile(r"(?:_KEY|_TOKEN|_SECRET)$|PASSWORD", re.IGNORECASE)
_SHAPES = {
    "sk_key": r"\bsk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}",
    "github_token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}",
    "aws_key_id": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "google_key": r"\bAIza[A-Za-z0-9_-]{35}",
    "slack_token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "huggingface_token": r"\bhf_[A-Za-z0-9]{30,}",
    "jwt": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    # A block that was cut off before its end is a secret all the same.
    "private_key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?"
    r"(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)",
}
# A string without one of these cannot match a shape; `in` is much cheaper than the expression.
_MARKS = ("sk-", "gh", "github_pat_", "AKIA", "ASIA", "AIza", "xox", "hf_", "eyJ", "PRIVATE KEY")
_SHAPE = re.compile("|".join(f"(?P<{name}>{shape})" for name, shape in _SHAPES.items()))


class Redactor:
    """Replaces secrets in the strings (and keys) of a JSON value; numbers stay as they are."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = {value: name for name, value in secrets.items() if value}
        # Longest first: a secret that contains another one is replaced as a whole.
        values = sorted(self._names, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, values))) if values else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Redactor:
        """Knows the values of at least `MIN_LENGTH` characters of all variables named `*_KEY`,
        `*_TOKEN`, `*_SECRET` or `*PASSWORD*`."""
        return cls(
            {
                name: value
                for name, value in environment.items()
                if len(value) >= MIN_LENGTH and _SECRET_NAME.search(name)
            }
        )

    def __call__(self, value: Json) -> Json:
        """The value without secrets; `value` itself is left alone."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self(item) for key, item in value.items()}
        if isinstance(value, list):
            if all(type(item) in (int, float) for item in value):
                return value  # token ids and log-probs: long, and never secret text
            return [self(item) for item in value]
        return value

    def text(self, text: str) -> str:
        """One string without secrets."""
        if self._known is not None:
            text = self._known.sub(lambda found: f"[redacted:{self._names[found[0]]}]", text)
        if any(mark in text for mark in _MARKS):
            text = _SHAPE.sub(lambda found: f"[redacted:{found.lastgroup}]", text)
        return text
