"""A wrong setting is named with the nearest right one, before any process starts."""

from __future__ import annotations

import pytest

from agentloop.errors import UnknownName, UsageError
from agentloop.training.settings import sft_settings


def test_defaults_and_values() -> None:
    assert sft_settings({}).r == 16
    assert sft_settings({"learning_rate": 5e-4, "target_modules": ["q_proj"]}).learning_rate == 5e-4


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean `learning_rate`"):
        sft_settings({"learning_rat": 1e-3})


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("epochs", "many"), ("learning_rate", -1.0), ("warmup", 1.0)],
)
def test_a_wrong_value_names_its_key(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        sft_settings({key: value})  # type: ignore[dict-item]
