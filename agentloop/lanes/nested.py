"""Parts inside a part: `credit: group`, `credit: {use: group, baseline: mean_std}`, a reference.

In: what stands under a key of a lane in `workflow.yaml`. Out: the object it names, checked by its
port. A short name is one of those given here; anything else is a reference, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BeforeValidator, ValidationError

from agentloop.datasets.credit import (
    AttemptsCredit,
    Credit,
    CriticsCredit,
    GroupCredit,
    PercentileCredit,
    StepCredit,
)
from agentloop.datasets.makers import (
    ListwiseRows,
    PreferenceRows,
    RLRows,
    RowMaker,
    SFTRows,
    UnpairedRows,
)
from agentloop.errors import UnknownName, UsageError
from agentloop.refs import resolve

CREDITS: dict[str, Callable[..., Any]] = {
    "group": GroupCredit,
    "percentile": PercentileCredit,
    "step": StepCredit,
    "critics": CriticsCredit,
    "attempts": AttemptsCredit,
}
ROWS: dict[str, Callable[..., Any]] = {
    "sft": SFTRows,
    "rl": RLRows,
    "preference": PreferenceRows,
    "unpaired": UnpairedRows,
    "listwise": ListwiseRows,
}


def nested(port: type[Any], names: Mapping[str, Callable[..., Any]]) -> BeforeValidator:
    """Reads a field that holds a part of `port`; `names` are the short ones."""

    def read(value: Any) -> Any:
        given = {"use": value} if isinstance(value, str) else value
        if isinstance(given, dict):
            given = _made(given, names)
        if given is not None and not isinstance(given, port):
            raise UsageError(f"`{value}` is no {port.__name__}; use one of {', '.join(names)}")
        return given

    return BeforeValidator(read)


def _made(given: Mapping[str, Any], names: Mapping[str, Callable[..., Any]]) -> Any:
    use = given.get("use")
    if not isinstance(use, str):
        raise UsageError(f"name the part: {{use: {next(iter(names))}, key: value}}")
    if use not in names and ":" not in use:
        raise UnknownName("part", use, names)
    kind: Any = names[use] if use in names else resolve(use)
    try:
        return kind(**{key: value for key, value in given.items() if key != "use"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(one) for one in first["loc"])
        raise UsageError(f"`{use}` at `{at}`: {first['msg']}") from None


A_CREDIT = nested(Credit, CREDITS)
A_ROW_MAKER = nested(RowMaker, ROWS)
