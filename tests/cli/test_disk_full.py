"""A disk that is full from the k-th page on: one sentence, a sound log, and the cycle goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import disk_full_cases
import pytest
import tiny_workflow

SCRIPT = Path(disk_full_cases.__file__)
MOST = 500


def small(root: Path) -> None:
    yaml = tiny_workflow.YAML
    start, end = yaml.index("collect:"), yaml.index("scripted:")
    lanes = """\
collect: {use: agentloop.lanes.collect:Explore, rounds: 1, tasks: 4, samples: 1, practice: 4}
lanes:
  instructions: {use: agentloop.lanes.instructions:EvolveInstruction, rollouts: 8, dev: 4,
    minibatch: 2, proposals: 1, patience: 1, operators: [reflect]}
heldout: {n: 6, lanes: 6}
"""
    tiny_workflow.make(root, yaml=yaml[:start] + lanes + yaml[end:])


def cases(root: Path, numbers: list[int]) -> list[dict[str, Any]]:
    small(root)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *map(str, numbers)],
        capture_output=True, text=True, timeout=3000, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(one: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether the disk was full; raises where it was not borne."""
    full = one["full"]
    assert "traceback" not in full, full
    if full["code"]:
        errors = [line for line in full["err"].splitlines() if line.startswith("error: ")]
        assert full["code"] in (1, 2) and len(errors) == 1, full
        assert "Traceback" not in full["err"]
    made = one["verify"]["out"]  # nothing is there when not even the log could be made
    assert not made or json.loads(made)["problems"] == [], one["verify"]
    assert one["again"]["code"] == 0, one["again"]
    report = json.loads(one["again"]["out"])
    assert (report["bundle"], report["state"]) == (whole["bundle"], whole["state"])
    assert json.loads(one["after"]["out"])["ok"]
    return bool(full["code"])


def whole_cycle(done: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a cycle that had room."""
    assert done[-1]["full"]["code"] == 0, done[-1]["full"]
    return json.loads(done[-1]["full"]["out"])  # type: ignore[no-any-return]


def test_a_full_disk_is_one_sentence_and_the_cycle_goes_on(tmp_path: Path) -> None:
    done = cases(tmp_path, [0, 30, 10 * MOST])
    full = [judge(one, whole_cycle(done)) for one in done]
    assert full == [True, True, False]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hundred", range(MOST // 100))
def test_every_page(tmp_path: Path, hundred: int) -> None:
    done = cases(tmp_path, [*range(100 * hundred + 1, 100 * hundred + 101), 10 * MOST])
    full = [judge(one, whole_cycle(done)) for one in done]
    print(f"{sum(full)} of {len(full) - 1} cycles met a full disk")
    assert not hundred or sum(full) <= 100
    assert hundred or sum(full) >= 50
