"""The arguments of a tool call as text and back: one reading for transports, gateway and agents.

In: what a model or a client wrote. Out: a JSON object; and the text again. Decision: text that is
not one, or that JSON or Unicode cannot hold (`NaN`, a number past the floats, half a surrogate
pair), is kept as it came under `UNPARSED`. So an agent that sends a call back as it got it says
what was recorded, and its conversation goes on with the tokens that were sampled.
"""

from __future__ import annotations

import json
import math

from pydantic_core import from_json

from agentloop.records import Json

UNPARSED = "_unparsed"
"""Sole argument of a call whose arguments are no JSON object: the text as it came. No tool has such
a parameter, so the tool refuses it and the model reads why."""


def read_json(text: str) -> Json:
    """A JSON value. Raises `ValueError` where it cannot be written as JSON again."""
    value: Json = from_json(text, allow_inf_nan=False)
    if not _finite(value):
        raise ValueError("a number is too large")
    return value


def read_arguments(text: str) -> dict[str, Json]:
    """The arguments in `text`; of no text, none."""
    if not text or text.isspace():
        return {}
    try:
        value = read_json(text)
    except ValueError:
        return {UNPARSED: text}
    return value if isinstance(value, dict) else {UNPARSED: text}


def write_arguments(arguments: dict[str, Json]) -> str:
    """The text that `read_arguments` gives them back from."""
    raw = arguments.get(UNPARSED)
    if (
        isinstance(raw, str) and read_arguments(raw) == arguments
    ):  # a model may write the key itself
        return raw
    return json.dumps(arguments)


def _finite(value: Json) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list) or all(map(_finite, value))
