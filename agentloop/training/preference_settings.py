"""Settings of preference learning and reward models, checked before a process is started.

In: the `settings` of a job. Out: validated settings. No torch here, so that a workflow file can be
checked where the trainer is not installed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentloop.training.settings import Positive, SFTSettings


class TunedSettings(SFTSettings):
    """Methods that see each row once by default."""

    epochs: float = Field(default=1.0, gt=0)


class DPOSettings(TunedSettings):
    """Direct preference optimization (Rafailov et al. 2023) on pairs of rows."""

    batch_size: Positive = 8
    """Pairs for one step."""
    learning_rate: float = Field(default=5e-5, gt=0)
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the one that it started as."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """The logistic loss, or the squared one that does not push decided pairs on (Azar et al. 2023,
    IPO)."""


class KTOSettings(TunedSettings):
    """Learning from rows that are good or bad by themselves (Ethayarajh et al. 2024)."""

    batch_size: int = Field(default=8, ge=2)
    """Rows for one step; the baseline is estimated over them, so one is not enough."""
    learning_rate: float = Field(default=5e-5, gt=0)
    beta: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    """The source advises a ratio that makes up for how many there are of each."""


class RewardSettings(TunedSettings):
    """A scalar head that ranks good answers above bad ones."""

    learning_rate: float = Field(default=1e-4, gt=0)
    loss: Literal["pairwise", "listwise"] = "listwise"
    """Over the two rows of a `pair` (Bradley & Terry 1952), or over every good and bad row of a
    `group` in one pass (Yang et al. 2024, equation 1)."""
