"""For all tests: no network beyond loopback, no telemetry, a home of their own."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from agentloop.cli import _QUIET

# A machine that is busy with something else has not failed a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
os.environ.update(_QUIET)
for name in list(os.environ):
    if name.startswith(("OPENAI_", "AGENTLOOP_")) and name != "AGENTLOOP_CACHE":
        del os.environ[name]
os.environ["AGENTLOOP_DEBUG"] = "1"  # a fault of ours is a traceback here


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    import pytest_socket

    pytest_socket.socket_allow_hosts(["127.0.0.1", "localhost", "::1"], allow_unix_socket=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, set for the test."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("AGENTLOOP_HOME", str(place))
    return place
