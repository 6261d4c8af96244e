"""Settings of learning round by round, checked before a process is started. No torch here."""

from __future__ import annotations

from agentloop.training.replay_settings import ReplaySettings


class SessionSettings(ReplaySettings):
    """Those of learning from stored rows, and where the optimizer goes on from."""

    optimizer: str = ""
    """Directory with the state that an earlier round left; empty for a new one. The lane that
    leads the rounds sets it."""
