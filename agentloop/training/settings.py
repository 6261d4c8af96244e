"""Settings of fine-tuning, checked before a process is started.

In: the `settings` of a job. Out: a validated `SFTSettings`. No torch here, so that a workflow
file can be checked where the trainer is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentloop.errors import UnknownName, UsageError
from agentloop.records import Json
from agentloop.training.guards import GuardSettings

Positive = Annotated[int, Field(ge=1)]
S = TypeVar("S", bound=BaseModel)


class SFTSettings(BaseModel):
    """Fine-tuning on chosen rows, and what every other method shares with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: float = Field(default=2.0, gt=0)
    max_steps: Positive | None = None
    """Stop after this many optimizer steps; it overrides `epochs`."""
    batch_size: Positive = 8
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps over which the learning rate rises; it then falls linearly to 0."""
    r: Positive = 16
    """Rank of the update (Hu et al. 2021, LoRA)."""
    alpha: Positive = 32
    """The update is scaled by `alpha / r`."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt; `all-linear` is every linear layer but the output head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; `auto` is bfloat16 where the processor has it."""
    share_prefix: bool = True
    """Compute what all rows of a batch begin with once (same gradient, less work). Turn it off for
    a base model whose memory is not a key-value cache."""
    tokens_at_once: Positive | None = None
    """Bounds memory: a batch with more tokens is computed in parts (same gradient). By default 384
    on a CPU (a trainer of 135 M parameters then peaks below 3 GB) and 16384 on a GPU."""
    max_length: Positive = 2048
    """Rows with more tokens are left out and counted, never cut: a cut row loses its answer."""
    weights: Literal["lora", "full"] = "lora"
    """What is learned: a low-rank adapter, or every weight of the base model."""
    guards: GuardSettings = GuardSettings()


def sft_settings(given: Mapping[str, Json]) -> SFTSettings:
    """Validate `given`; raises `UnknownName` for an unknown key, `UsageError` for a wrong value."""
    return settings_of(SFTSettings, given)


def settings_of(kind: type[S], given: Mapping[str, Json]) -> S:
    """`given` as settings of `kind`, with the errors of `sft_settings`."""
    for key in given:
        if key not in kind.model_fields:
            raise UnknownName("training setting", key, kind.model_fields)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(at) for at in first["loc"])
        raise UsageError(f"training setting `{name}`: {first['msg']}") from error
