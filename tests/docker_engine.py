"""Whether tests have a Docker engine, and the mark of those that need one."""

import os

import pytest

WHY = (
    os.environ.get("NO_DOCKER_ENGINE") or "use `make test-integration` or set DOCKER_HOST"
)
ENGINE = bool(os.environ.get("DOCKER_HOST"))
needs_engine = pytest.mark.skipif(not ENGINE, reason=f"no Docker engine: {WHY}")
