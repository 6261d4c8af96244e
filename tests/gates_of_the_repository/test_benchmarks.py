"""The benchmarks' contract: what is compared, what is left out; and nothing is left running."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import peers, rollouts
from benchmarks.harness import Check, alternate, ratio

STARTS_ANOTHER = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL
)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(float(sys.argv[2]))
print('{"cpu": 1}')
"""


MEASURES = """
import sys
from benchmarks.harness import alternate, main
command, sys.argv[1:] = [sys.argv[1], "-c", *sys.argv[2:], "60"], []
main("nothing", lambda quick: alternate({"a": command}, 1))
"""


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("seconds", [0, 60], ids=["ends", "takes too long"])
def test_nothing_that_a_variant_started_is_left(tmp_path: Path, seconds: int) -> None:
    told = tmp_path / "pid"
    command = {"a": [sys.executable, "-c", STARTS_ANOTHER, str(told), str(seconds)]}
    if seconds:
        with pytest.raises(RuntimeError, match="a took longer than 1 s"):
            alternate(command, 1, timeout=1)
    else:
        assert alternate(command, 1) == {"a": [{"cpu": 1}]}
    until = time.monotonic() + 5
    while (left := runs(int(told.read_text()))) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_benchmark_that_is_ended_ends_its_variants(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURES, sys.executable, STARTS_ANOTHER, str(told)],
        cwd=Path(__file__).parents[2],
    )
    until = time.monotonic() + 30
    while not (told.is_file() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) == 143
    while (left := runs(int(told.read_text()))) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


def test_a_variant_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="a ended with 3: alas"):
        alternate(
            {"a": [sys.executable, "-c", "import sys; sys.stderr.write('alas'); sys.exit(3)"]}, 1
        )


def test_variants_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); print('{}')"
    alternate({who: [sys.executable, "-c", script, str(log), who] for who in "ab"}, 3)
    assert log.read_text() == "ababab"


def test_a_ratio_is_taken_within_a_round() -> None:
    found = {"a": [{"x": 2}, {"x": 40}, {"x": 6}], "b": [{"x": 1}, {"x": 10}, {"x": 2}]}
    assert ratio(found, "a", "b", "x") == 3


@pytest.mark.parametrize(("value", "at_most", "ok"), [
    (2.0, False, True), (1.9, False, False), (2.0, True, True), (2.1, True, False),
])  # fmt: skip
def test_a_check_is_met_at_its_target(value: float, at_most: bool, ok: bool) -> None:
    assert Check("x", value, 2.0, at_most=at_most).ok is ok


def test_a_peer_counts_only_as_it_is_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    python = tmp_path / "openai" / "bin" / "python"
    assert peers.python_of("openai") is None
    python.parent.mkdir(parents=True)
    os.symlink(sys.executable, python)
    assert peers.python_of("openai") is None, "an installation that was broken off"
    mark = tmp_path / "openai" / ".installed"
    mark.write_text("\n".join(peers.PEERS["openai"]))
    assert peers.python_of("openai") == python
    mark.write_text("openai==3.0.0")
    assert peers.python_of("openai") is None, "made for another pin"


def test_every_pin_is_exact() -> None:
    assert all("==" in pin and "*" not in pin for pins in peers.PEERS.values() for pin in pins)


def test_peers_that_are_not_installed_are_rows_without_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    rows, checks = rollouts.peers(8, 1)
    assert checks == [] and [row["who"] for row in rows] == list(rollouts.PEERS)
    assert all("make peers" in row["skipped"] for row in rows) and json.dumps(rows)
