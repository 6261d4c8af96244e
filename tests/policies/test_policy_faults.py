"""Corrupt weights, manifests and half-finished saves: a bad policy is never served, the one before
it always can be."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentloop import files
from agentloop.errors import AgentLoopError, StoreError
from agentloop.files import MANIFEST, sha256_of
from agentloop.policies.registry import ADAPTER, Policies, policy_id
from agentloop.records import TrainingResult

Damage = Callable[[Path, random.Random], None]
SIZE = 40_000


def trained(folder: Path, seed: int) -> TrainingResult:
    folder.mkdir(parents=True)
    (folder / ADAPTER[0]).write_text(json.dumps({"r": 8, "seed": seed}))
    (folder / ADAPTER[1]).write_bytes(random.Random(seed).randbytes(SIZE))
    return TrainingResult(adapter=str(folder), sha256=sha256_of(folder / ADAPTER[1]))


class Served:
    """What a server has: the adapter whose path it was last given, read when it was."""

    def __init__(self, policies: Policies) -> None:
        self.policies, self.weights = policies, b""

    def load(self, name: str) -> None:
        """As `Bench` does it: checked, then loaded."""
        self.weights = (self.policies.path(name) / ADAPTER[1]).read_bytes()


def truncate(path: Path, dice: random.Random) -> None:
    file = path / dice.choice([*ADAPTER, MANIFEST])
    os.truncate(file, dice.randrange(file.stat().st_size))


def flip(path: Path, dice: random.Random) -> None:
    file = path / dice.choice(ADAPTER)
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def flip_manifest(path: Path, dice: random.Random) -> None:
    file = path / MANIFEST
    at = file.read_bytes().index(b"sha256") + 10 + dice.randrange(60)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def missing(path: Path, dice: random.Random) -> None:
    (path / dice.choice([*ADAPTER, MANIFEST])).unlink()


def stranger(path: Path, dice: random.Random) -> None:
    (path / f"model-{dice.randrange(9)}.safetensors").write_bytes(b"shard")


def other_manifest(path: Path, dice: random.Random) -> None:
    shutil.copy(path.parents[1] / "spare" / MANIFEST, path / MANIFEST)


def other_policy(path: Path, dice: random.Random) -> None:
    """All of another policy under this one's name: whole in itself."""
    shutil.rmtree(path)
    shutil.copytree(path.parents[1] / "spare", path)


def lying_manifest(path: Path, dice: random.Random) -> None:
    """Other weights, and a manifest made to fit them."""
    (path / ADAPTER[1]).write_bytes(dice.randbytes(SIZE))
    about = json.loads((path / MANIFEST).read_text())
    about["files"][ADAPTER[1]]["sha256"] = sha256_of(path / ADAPTER[1])
    (path / MANIFEST).write_text(json.dumps(about))


def half_renamed(path: Path, dice: random.Random) -> None:
    """A crash before the rename: the draft is there and the name is not."""
    path.rename(path.with_name(f".{path.name}.{dice.randrange(999)}"))


def half_copied(path: Path, dice: random.Random) -> None:
    """What a copy without a rename leaves."""
    for name in (MANIFEST, ADAPTER[1]):
        (path / name).unlink()
    (path / ADAPTER[1]).write_bytes(b"\0" * dice.randrange(SIZE))


DAMAGES: tuple[Damage, ...] = (
    truncate, flip, flip_manifest, missing, stranger, other_manifest, other_policy, lying_manifest,
    half_renamed, half_copied,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_bad_policy_is_never_served(tmp_path: Path, damage: Damage) -> None:
    policies = Policies(tmp_path / "policies")
    before = policy_id(policies.admit(trained(tmp_path / "a", 1), base="b"))
    after = policy_id(policies.admit(trained(tmp_path / "b", 2), base="b"))
    spare = policies.path(policy_id(policies.admit(trained(tmp_path / "c", 3), base="b")))
    spare.rename(tmp_path / "spare")
    shutil.copytree(policies.path(after), tmp_path / "whole")
    served, dice = Served(policies), random.Random(damage.__name__)
    for _ in range(18):  # 180 cases in all
        served.load(before)
        good = served.weights
        damage(policies.root / after, dice)
        with pytest.raises(AgentLoopError) as caught:
            served.load(after)
        assert after in str(caught.value)
        assert served.weights == good, "what is served was changed"
        served.load(before)
        assert served.weights == good
        shutil.rmtree(policies.root)
        (policies.root).mkdir()
        shutil.copytree(tmp_path / "whole", policies.root / after)
        policies.admit(trained(tmp_path / f"again-{_}", 1), base="b")


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """The disk is full from system call number `at` on, of those that a save makes."""
    calls = 0
    real_copy, real_flush = shutil.copyfile, files._flush

    def full() -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def copyfile(source: Path, target: Path) -> object:
        target.write_bytes(source.read_bytes()[: SIZE // 2])  # as much as there was room for
        full()
        return real_copy(source, target)

    def flush(entry: Path) -> None:
        full()
        real_flush(entry)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    monkeypatch.setattr(files, "_flush", flush)
    yield
    monkeypatch.undo()


def test_a_disk_that_fills_up_in_the_middle_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = Policies(tmp_path / "policies")
    before = policy_id(policies.admit(trained(tmp_path / "a", 1), base="b"))
    new = trained(tmp_path / "b", 2)
    done = 0
    for at in range(20):
        for _ in failing(monkeypatch, at):
            try:
                policies.admit(new, base="b")
            except StoreError as error:
                assert "No space left" in str(error)
            else:
                done += 1
        assert all(not path.name.startswith(".") for path in policies.root.iterdir())
        assert policies.names() == [before] if not done else before in policies.names()
        policies.path(before)
    assert 0 < done < 20
    policies.path(policy_id(policies.admit(new, base="b")))


@pytest.mark.parametrize("limit", [0, 100, 4096, 20_000, 39_999])
def test_a_real_limit_on_file_size(tmp_path: Path, limit: int) -> None:
    policies = Policies(tmp_path / "policies")
    before = policy_id(policies.admit(trained(tmp_path / "a", 1), base="b"))
    new = trained(tmp_path / "b", 2)
    code = (
        "import sys; from pathlib import Path\n"
        "from agentloop.errors import StoreError\n"
        "from agentloop.policies.registry import Policies\n"
        "from agentloop.records import TrainingResult\n"
        "given = TrainingResult(adapter=sys.argv[2], sha256=sys.argv[3])\n"
        "try: Policies(Path(sys.argv[1])).admit(given, base='b')\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(policies.root), new.adapter, new.sha256],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "cannot be written" in done.stdout, done.stderr
    assert policies.names() == [before] and len(list(policies.root.iterdir())) == 1
    policies.path(before)
    policies.admit(new, base="b")
