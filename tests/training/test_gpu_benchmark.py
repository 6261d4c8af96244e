"""The GPU benchmark without a GPU: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def test_without_a_gpu_it_says_so() -> None:
    pytest.importorskip("torch")
    root = Path(__file__).resolve().parents[2]
    results = root / "benchmarks" / "results" / "gpu.json"
    before = results.read_bytes() if results.exists() else None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick", "--json"], cwd=root, text=True,
        capture_output=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a CUDA GPU" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (results.read_bytes() if results.exists() else None) == before
