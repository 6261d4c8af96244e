"""A thread's file that stays open: removed, renamed or replaced by others, shared after a fork."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_checkpoints import address, checkpoint, seen

from agentloop.graphs.checkpoints import FILES, DeltaSaver


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced by one of the same size"])
def test_a_thread_whose_file_was_taken_away_begins_anew(tmp_path: Path, how: str) -> None:
    one, other = DeltaSaver(tmp_path), DeltaSaver(tmp_path)
    one.put(address(), checkpoint(1, {"n": "a"}, {"n": 1}), {}, {"n": 1})
    [file] = tmp_path.glob("*.ckpt")
    if how == "renamed":
        file.rename(tmp_path / "elsewhere")
    else:
        other.delete_thread("t")
    if how.startswith("replaced"):
        other.put(address(), checkpoint(1, {"n": "b"}, {"n": 1}), {}, {"n": 1})
        assert seen(one, address())[0]["channel_values"] == {"n": "b"}
    one.put(address(), checkpoint(2, {"n": "c"}, {"n": 1}), {}, {"n": 1})
    fresh = DeltaSaver(tmp_path)
    values = [found.checkpoint["channel_values"]["n"] for found in fresh.list(address())]
    assert values == (["c", "b"] if how.startswith("replaced") else ["c"])


def test_forked_processes_take_turns(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path)
    saver.put(address(), checkpoint(0, {"n": "0"}, {"n": 1}), {}, {"n": 1})
    children = []
    for child in range(3):
        if not (pid := os.fork()):
            try:
                for number in range(60):
                    values = {"n": f"{child} {number} " + "x" * 500}
                    saver.put(address(), checkpoint(number % 60, values, {"n": 1}), {}, {"n": 1})
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    said = [one.checkpoint["channel_values"]["n"] for one in DeltaSaver(tmp_path).list(address())]
    wanted = {f"{child} {number}" for child in range(3) for number in range(60)}
    assert {" ".join(text.split()[:2]) for text in said} == wanted | {"0"}


def test_however_many_threads_few_files_stay_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux lists open files")
    before, saver = opened(), DeltaSaver(tmp_path)
    for number in range(2 * FILES):
        config = address(thread=f"t{number}")
        saver.put(config, checkpoint(1, {"n": 1}, {"n": 1}), {}, {"n": 1})
    assert opened() - before <= FILES
    del saver
    assert opened() <= before
