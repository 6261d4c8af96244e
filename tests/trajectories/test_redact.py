"""Redaction: known values everywhere, common key shapes, and nothing else."""

import hashlib
import json
import random
import string
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.trajectories.redact import Redactor

ALNUM = string.ascii_letters + string.digits


@settings(deadline=None)  # the first call builds the table of marks
@given(
    secret=st.text(min_size=8, max_size=40),
    before=st.text(),
    after=st.text(),
    deep=st.integers(0, 5),
)
def test_known_values_are_gone_from_any_value(
    secret: str, before: str, after: str, deep: int
) -> None:
    value: object = {before + secret: [before + secret + after, secret * 2, 1, None, True]}
    for _ in range(deep):
        value = [{"k": value}]

    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [s for item in value.items() for part in item for s in strings(part)]
        if isinstance(value, list):
            return [s for item in value for s in strings(item)]
        return [value] if isinstance(value, str) else []

    clean = Redactor({"THE_KEY": secret})(value)  # type: ignore[arg-type]
    if secret not in "[redacted:THE_KEY]":
        # What is left may only spell the secret across a placeholder's edge.
        pieces = [p for s in strings(clean) for p in s.split("[redacted:THE_KEY]")]
        assert not any(secret in piece for piece in pieces)
    assert "[redacted:THE_KEY]" in json.dumps(clean)


def shapes() -> dict[str, str]:
    dice = random.Random(1)

    def text(n: int, letters: str = ALNUM) -> str:
        return "".join(dice.choices(letters, k=n))

    jwt = f"eyJ{text(20)}.eyJ{text(30)}.{text(40)}"
    pem = "-----BEGIN RSA PRIVATE KEY-----\n" + text(64) + "\n-----END RSA PRIVATE KEY-----"
    return {
        "openai": "sk-" + text(48) + "1", "project": "sk-proj-" + text(20) + "_" + text(20) + "1",
        "anthropic": "sk-ant-api03-" + text(40), "github": "ghp_" + text(36),
        "pat": "github_pat_" + text(60), "aws": "AKIA" + text(16, string.ascii_uppercase),
        "google": "AIza" + text(35), "slack": "xoxb-" + text(24), "hf": "hf_" + text(34),
        "jwt": jwt, "pem": pem, "cut": pem[:80],
    }  # fmt: skip


@pytest.mark.parametrize("name", shapes())
def test_key_shapes_are_gone(name: str) -> None:
    secret = shapes()[name]
    for text in (f"use {secret}", f"Authorization: Bearer {secret}", f"k={secret}\n", secret):
        assert secret not in Redactor({}).text(text)
        assert "[redacted:" in Redactor({}).text(text)


def test_harmless_text_stays() -> None:
    dice = random.Random(0)
    given = {"PATH": "/usr/local/bin", "A_KEY": "short", "MONKEY": "x" * 9}
    redact = Redactor.from_environment(given)
    samples = ["task-oriented-dialogue-state-tracking", "risk-1234567890-1234567890-123",
               "sk-learn-compatible-estimator-api", "eyJust a word", "-----BEGIN CERTIFICATE-----",
               "/usr/local/bin", "short", "xxxxxxxxx", "a_very_long_hf_identifier"]  # fmt: skip
    for n in range(1000):
        samples += [str(uuid.UUID(int=dice.getrandbits(128))),
                    hashlib.sha256(str(n).encode()).hexdigest()]  # fmt: skip
    assert [redact.text(sample) for sample in samples] == samples
    numbers = {"ids": [1, 2, 3], "logprobs": [-0.5], "n": 12345678}
    assert redact(numbers) == numbers  # type: ignore[arg-type]


def test_the_longer_secret_goes_first_and_names_tell_which() -> None:
    redact = Redactor({"ONE": "abcdefgh", "TWO": "abcdefgh-ijklmnop"})
    assert redact.text("abcdefgh-ijklmnop abcdefgh") == "[redacted:TWO] [redacted:ONE]"


def test_names_of_variables_that_count() -> None:
    given = {"OPENAI_API_KEY": "a" * 8, "gh_token": "b" * 8, "DB_PASSWORD_FILE": "c" * 8,
             "X_SECRET": "d" * 8, "KEYBOARD": "e" * 8}  # fmt: skip
    clean = Redactor.from_environment(given).text(" ".join(given.values()))
    assert clean == ("[redacted:OPENAI_API_KEY] [redacted:gh_token] [redacted:DB_PASSWORD_FILE] "
                     "[redacted:X_SECRET] eeeeeeee")  # fmt: skip
