"""Settings of learning from stored rows, checked before a process is started.

In: the `settings` of a job. Out: validated `ReplaySettings`. No torch here, so that a workflow file
can be checked where the trainer is not installed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentloop.training.preference_settings import TunedSettings
from agentloop.training.settings import Positive

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClipSettings(_Part):
    """What becomes of a ratio far from 1: held in [1 - low, 1 + high] (`losses.Clip`), or with
    `most` a weight of at most that (`losses.Cap`). The defaults are DAPO's (Yu et al. 2025)."""

    low: Share = 0.2
    high: Weight = 0.28
    most: Annotated[float, Field(gt=0)] | None = None


class NegativeSettings(_Part):
    """Of the loss `negative_aware`; see `losses.Negatives`."""

    weight: Weight = 1.0
    floor: Annotated[float, Field(gt=0)] = 1.0
    normalise: Literal[0, 1, 2] = 1


class CovarianceSettings(_Part):
    """Which tokens lose their gradient for the sake of entropy; see `losses.Band`."""

    share: Share = 0.02
    low: float = 1.0
    high: float = 40.0


class AnchorSettings(_Part):
    """What the policy is held to, and how strongly.

    `to`: the `base` model, the `start` of this phase, or an `ema` of the policy that keeps `keep`
    of itself at each step. The average begins at the start of a phase; the rounds of an online run
    (`session`) hand it on. `weight` is for all sampled tokens; `first` is added to it on those of
    a row's first attempt (of its first sampled segment, when the row knows of one attempt only).
    """

    to: Literal["base", "start", "ema"] = "base"
    weight: Weight = 0.0
    first: Weight = 0.0
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.995
    estimator: Literal["k2", "k3", "centred"] = "k3"
    """A loss on each token (`losses.masked_kl`; `k3` is TRL's), or `centred`: each row's divergence
    less the mean of its step is taken out of its advantages (`losses.centred_kl`), which holds the
    policy without a pull on the step as a whole."""

    @model_validator(mode="after")
    def _whole_rows(self) -> AnchorSettings:
        if self.estimator == "centred" and self.first:
            raise ValueError("`estimator: centred` is of whole rows; set `weight`, not `first`")
        return self


class ReplaySettings(TunedSettings):
    """Policy gradients, or negative-aware likelihood, on rows with stored log-probs."""

    batch_size: Positive = 64
    """Rows for one step, about: the rows of a group are never parted."""
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the learning rate, after the warm-up."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Weight = 0.0

    loss: Literal["policy_gradient", "negative_aware"] = "policy_gradient"
    level: Literal["token", "sequence"] = "token"
    """One ratio for a token, or one for a row (the geometric mean of its tokens')."""
    clip: ClipSettings | None = ClipSettings()
    """Nothing: the plain importance-weighted gradient."""
    negatives: NegativeSettings = NegativeSettings()
    covariance: CovarianceSettings | None = None
    reduction: Literal["token", "sequence", "constant", "sum"] = "token"
    length: Annotated[float, Field(gt=0)] = 1.0
    """What `constant` and `sum` divide by; see `losses.weigh`."""
    weight: Weight = 1.0
    """Of the policy's loss beside the anchor and the entropy (how much a replay of one's own
    successes counts)."""
    stale: Annotated[float, Field(gt=0)] | None = None
    """Rows with a negative advantage, whose tokens the policy has made less likely by more than
    this (mean, in nats), are left out."""
    stop_at: Annotated[float, Field(gt=0)] | None = None
    """End the phase, keeping what was learned, once the mean |log ratio| of a step is beyond."""

    anchor: AnchorSettings = AnchorSettings()
    entropy: Weight = 0.0
    """Weight of the mean entropy, as a bonus."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of rows that do not say how they were sampled."""
    cut_off: Literal["refuse", "keep"] = "refuse"
    """Rows sampled with `top_p` or `top_k`: their stored log-probs are those of the tokens that
    were left to choose from, so a ratio to the whole distribution begins below 1. `keep` takes it
    as it is: a right weight for what the policy does inside the cut, blind to what is outside."""

    @model_validator(mode="after")
    def _advantages_to_take_from(self) -> ReplaySettings:
        if self.anchor.estimator == "centred" and self.loss != "policy_gradient":
            raise ValueError("`anchor.estimator: centred` changes advantages, which only the loss "
                             "`policy_gradient` has")  # fmt: skip
        return self
