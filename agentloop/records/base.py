"""What all records share: the decorator, the identity by content, the closed vocabularies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, Union, dataclass_transform

from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
else:  # pydantic (in `trajectories.codec`) resolves the recursion only through `TypeAliasType`
    Json = TypeAliasType(
        "Json", Union[bool, int, float, str, list["Json"], dict[str, "Json"], None]
    )
Purpose = Literal["serve", "collect", "train", "eval"]
LaneName = Literal["instructions", "skills", "policy"]
Reason = Literal[
    "model_error", "model_timeout", "context_overflow", "budget", "turn_limit", "token_limit",
    "time_limit", "tool_error", "sandbox_error", "graph_error", "grader_error", "cancelled",
]  # fmt: skip
AGENT_REASONS = frozenset({"turn_limit", "token_limit"})
"""Failures of the agent itself: scored 0. Every other reason is the infrastructure's: never scored,
never trained on."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A frozen, slotted, keyword-only dataclass."""
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


def content_id(kind: str, *parts: object) -> str:
    """`kind-` and 16 hex digits of blake2b over the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=asdict)  # type: ignore[arg-type]
    return f"{kind}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
