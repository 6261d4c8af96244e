"""The benchmark of training: variants take turns, and TRL's trainers do the work that ours do."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_llama
import pytest

from benchmarks.training import compared
from benchmarks.training_data import (
    Load,
    apart,
    candidates,
    draw,
    faster,
    figures,
    order,
)  # fmt: skip
from benchmarks.turns import compete

LOADS = {
    "sft": Load(count=4, batch=4, samples=1, prompt=(10, 30), answer=(5, 40)),
    "dpo": Load(count=4, batch=4, samples=2, prompt=(10, 30), answer=(5, 40)),
    "replay": Load(count=4, batch=8, samples=4, prompt=(20, 30), answer=(5, 40)),
}
SCRIPT = """
import json, sys, time
name, seconds, log = sys.argv[1], float(sys.argv[2]), open(sys.argv[3], "a")
print(json.dumps({"ready": name}), flush=True)
steps = 0
for line in sys.stdin:
    steps += 1
    if name == "fails":
        sys.exit("alas")
    log.write(name); log.flush()
    print(json.dumps({"cpu": seconds}), flush=True)
    if steps == 5:
        break
print(json.dumps({"name": name, "steps": steps}), flush=True)
"""


def command(name: str, seconds: float, log: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, name, str(seconds), str(log)]


def test_the_fastest_peer_goes_on_after_the_trial(tmp_path: Path) -> None:
    log = tmp_path / "log"
    peers = {name: command(name, at, log) for name, at in (("b", 3), ("c", 1), ("d", 2))}
    ours, best, peer, out = compete(
        command("a", 9, log), peers, steps=5, trial=2, timeout=60,
        cost=lambda said: sum(one["cpu"] for one in said),
    )  # fmt: skip
    assert log.read_text() == "abcd" * 2 + "ac" * 3
    assert (best, peer) == ("c", {"name": "c", "steps": 5}) and ours == {"name": "a", "steps": 5}
    assert {name: len(said) for name, said in out.items()} == {"b": 2, "d": 2}


def test_a_variant_that_fails_in_its_turn_is_told_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RuntimeError, match="fails ended with 1: alas"):
        compete(
            command("a", 1, log), {"fails": command("fails", 1, log)}, steps=5, trial=2,
            cost=len, timeout=60,
        )  # fmt: skip


def run(seconds: list[float], **more: Any) -> dict[str, Any]:
    """What a process prints: 100 tokens a step, half of them computed."""
    steps = [
        {"wall": 0.0, "cpu": one, "tokens": 100, "answers": 20, "computed": 50, "peak_mb": 7.0,
         "loss": 2.0, "grad_norm": 0.5}
        for one in seconds
    ]  # fmt: skip
    return {
        "clock": "cpu",
        "gflops": 1e-6,
        "body": 8,
        "head": 2,
        "steps": steps,
        "before": {},
        "reference": False,
    } | more


def test_the_first_steps_count_for_nothing_and_shared_tokens_once() -> None:
    found = figures(run([90.0, 1.0, 1.0]), 1)
    assert (found["tokens_per_second"], found["computed_tokens_per_second"]) == (100, 50)
    assert (found["share_6pt"], found["share_6pt_computed"]) == (6, 3)


def test_a_reference_pass_is_work_as_well() -> None:
    needed = 8 * 50 + 2 * 20  # the vocabulary at answers alone
    for reference, times in ((False, 4), (True, 6)):
        found = figures(run([1.0, 1.0], reference=reference), 1)
        assert found["share_needed"] == times * needed / 1000


def test_a_pass_made_before_the_steps_is_part_of_them() -> None:
    early = run([1.0, 1.0, 1.0, 1.0], before={"cpu": 4.0})
    assert figures(early, 2)["tokens_per_second"] == 50
    assert faster(early, run([9.0, 3.0, 3.0, 5.0]), 1) == 1.5


def test_how_far_two_runs_are_apart_is_the_worst_step() -> None:
    other = run([1.0, 1.0])
    other["steps"][1] |= {"loss": 4.0}
    assert apart(run([1.0, 1.0, 1.0]), other, "loss") == 0.5


def test_a_gradient_is_compared_with_the_nearest_of_trl() -> None:
    far, near = run([2.0, 2.0]), run([9.0])
    far["steps"][1] |= {"grad_norm": 2.5}
    near["steps"][0] |= {"grad_norm": 0.6}
    checks = {one.name.split(": ")[1]: one.value for one in compared(
        "sft", run([1.0, 1.0]), [far, near], 1.0, 1
    )}  # fmt: skip
    assert checks["gradient of a step, apart from TRL's"] == 0.1
    assert checks["tokens per second, share of TRL's"] == 2.0


@pytest.mark.parametrize("phase", LOADS)
def test_every_row_is_in_one_step_of_full_size(phase: str) -> None:
    load = LOADS[phase]
    steps = order(phase, draw(load, 300), load)
    assert [len(step) for step in steps] == [load.batch] * load.count
    assert sorted(at for step in steps for at in step) == list(range(load.count * load.batch))


@pytest.mark.integration
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("phase", LOADS)
def test_trl_does_the_same_work_in_every_configuration(phase: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from benchmarks import training_variants

    model, load = chat_llama.make(tmp_path / "model"), LOADS[phase]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    data = draw(load, vocabulary)
    told = training_variants.score(model, data)
    data = [replace(one, logprobs=tuple(logp)) for one, logp in zip(data, told, strict=True)]

    def trained(who: str) -> dict[str, Any]:
        given = argparse.Namespace(phase=phase, who=who, model=model, turns=False, profile=False)
        return training_variants.trained(given, data, load, io.StringIO())

    silence = os.environ.get("TRL_EXPERIMENTAL_SILENCE")
    ours = trained("ours")
    whole = sum(one.length for one in data)
    once = whole if phase == "sft" else sum(
        one.length if at % load.samples == 0 else len(one.ids) for at, one in enumerate(data)
    )  # fmt: skip
    computed = sum(one["computed"] for one in ours["steps"])
    # The last token of a shared prompt predicts, so each row has its own.
    assert once <= computed <= once + len(data), "what a group shares was not computed once"
    for who in candidates(phase, gpu=False):
        theirs = trained(who)
        assert sum(one["computed"] for one in theirs["steps"]) == whole
        assert [one["tokens"] for one in theirs["steps"]] == [
            one["tokens"] for one in ours["steps"]
        ]
        assert apart(ours, theirs, "loss") < 0.02, who
        assert apart(ours, theirs, "grad_norm") < 0.1, who
    if silence is None:
        os.environ.pop("TRL_EXPERIMENTAL_SILENCE", None)
