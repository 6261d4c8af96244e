"""What a tool adds to a reward has a cap and an end."""

from __future__ import annotations

import pytest

from agentloop.errors import UsageError
from agentloop.rewards.shape import tool_bonus


def test_a_tool_bonus_is_capped_and_fades() -> None:
    assert tool_bonus(3, 1.0) == pytest.approx(0.3)
    assert tool_bonus(50, 1.0) == 1.0
    assert tool_bonus(50, 0.0) == 0.0
    with pytest.raises(UsageError):
        tool_bonus(-1, 1.0)
