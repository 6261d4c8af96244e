"""A policy is named by content, never overwritten, and checked before it is used."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from agentloop.errors import PolicyError, StoreError, UnknownName, UsageError
from agentloop.files import sha256_of
from agentloop.policies.finite import check_finite
from agentloop.policies.registry import Policies, policy_id
from agentloop.records import Policy, TrainingResult


def result(tmp_path: Path, weights: bytes = b"weights") -> TrainingResult:
    adapter = tmp_path / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    (adapter / "optimizer.pt").write_bytes(b"pickle")
    return TrainingResult(
        adapter=str(adapter),
        sha256=sha256_of(adapter / "adapter_model.safetensors"),
        metrics={"last_loss": 0.1},
    )


def admit(policies: Policies, given: TrainingResult) -> Policy:
    return policies.admit(given, base="smollm2", role="agent", dataset="d", parents=["p0"])


def test_a_policy_is_copied_without_anything_that_could_run(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    policy = admit(policies, result(tmp_path))
    path = policies.path(policy_id(policy))
    assert sorted(entry.name for entry in path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert policies.load(policy_id(policy)) == policy
    assert (policy.parents, policy.metrics) == (("p0",), {"last_loss": 0.1})


def test_admitting_again_changes_nothing(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    policy = admit(policies, result(tmp_path))
    stamp = (policies.path(policy_id(policy)) / "manifest.json").stat().st_mtime_ns
    assert admit(policies, replace(result(tmp_path), metrics={})) == policy
    assert (policies.path(policy_id(policy)) / "manifest.json").stat().st_mtime_ns == stamp
    admit(policies, result(tmp_path, b"other"))
    assert len(policies.names()) == 2


@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "manifest", "link"])
def test_damage_is_found_before_use(tmp_path: Path, damage: str) -> None:
    policies = Policies(tmp_path / "policies")
    name = policy_id(admit(policies, result(tmp_path)))
    weights = policies.path(name) / "adapter_model.safetensors"
    if damage == "changed":
        weights.write_bytes(b"weightz")
    elif damage == "missing":
        weights.unlink()
    elif damage == "extra":
        (weights.parent / "code.py").touch()
    elif damage == "manifest":
        (weights.parent / "manifest.json").write_text("[]")
    else:
        weights.unlink()
        weights.symlink_to(tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(StoreError):
        policies.path(name)
    with pytest.raises(StoreError):
        admit(policies, result(tmp_path))


def test_what_the_trainer_did_not_write_is_refused(tmp_path: Path) -> None:
    given = replace(result(tmp_path), sha256="0" * 64)
    with pytest.raises(StoreError, match="not what the trainer wrote"):
        admit(Policies(tmp_path / "policies"), given)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(StoreError, match="missing"):
        admit(Policies(tmp_path / "policies"), given)
    assert Policies(tmp_path / "policies").names() == []


def whole_model(tmp_path: Path) -> TrainingResult:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"all weights")
    (folder / "training_args.bin").write_bytes(b"pickle")
    return TrainingResult(adapter=str(folder), sha256=sha256_of(folder / "model.safetensors"))


def test_a_whole_model_is_a_policy_too(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    given = whole_model(tmp_path)
    policy = admit(policies, given)
    path = policies.path(policy_id(policy))
    names = ["config.json", "manifest.json", "model.safetensors"]
    assert sorted(entry.name for entry in path.iterdir()) == names
    assert (policy.sha256, policy.parents) == (given.sha256, ("p0",))
    (path / "model.safetensors").write_bytes(b"all weightz")
    with pytest.raises(StoreError):
        policies.path(policy_id(policy))
    with pytest.raises(StoreError, match="not what the trainer wrote"):
        admit(policies, replace(given, sha256="0" * 64))


def test_half_a_model_beside_half_an_adapter_is_refused(tmp_path: Path) -> None:
    given = whole_model(tmp_path)
    (tmp_path / "whole" / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match="missing"):
        admit(Policies(tmp_path / "policies"), given)


def test_names_cannot_leave_the_root(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    for name in ("../adapter", "", ".hidden", "a/b", "/etc"):
        with pytest.raises(UsageError):
            policies.path(name)
    with pytest.raises(UnknownName):
        policies.path("policy-0000000000000000")


WIDTHS = {"F64": 8, "C64": 8, "I64": 8, "F32": 4, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1}


def tensor(name: str, kind: str, data: bytes) -> bytes:
    """A safetensors file of one tensor."""
    shape = [len(data) // WIDTHS.get(kind, 2)]
    about = {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, name: about}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("F32", struct.pack("<3f", 1, -3e38, 0), struct.pack("<3f", 1, float("nan"), 0)),
        ("F64", struct.pack("<2d", 1, -1e300), struct.pack("<2d", float("-inf"), 1)),
        ("F16", struct.pack("<2e", 6e4, 1), struct.pack("<2e", float("inf"), 1)),
        ("BF16", b"\x80\x3f\x7f\x7f", b"\x80\x3f\xc0\x7f"),
        ("F8_E5M2", b"\x7b\xfb\x00", b"\x00\xfc\x00"),
        ("F8_E4M3", b"\x7e\xfe\x78", b"\x00\xff\x00"),
        ("F8_E8M0", b"\xfe\x00\x7f", b"\x00\x00\xff"),
        ("C64", struct.pack("<2f", 1, 2), struct.pack("<2f", 1, float("nan"))),
        ("I64", b"\xff" * 8, None),
    ],
)
def test_weights_that_are_no_numbers_are_not_admitted(
    tmp_path: Path, kind: str, good: bytes, bad: bytes | None
) -> None:
    policies = Policies(tmp_path / "policies")
    admit(policies, result(tmp_path, tensor("lora_A", kind, good)))
    if bad is not None:
        with pytest.raises(PolicyError, match=r"`lora_A` .* not all finite"):
            admit(policies, result(tmp_path, tensor("lora_A", kind, bad)))
    assert len(policies.names()) == 1


NAN = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "other",
    [
        3, [], {"dtype": ["F32"]}, {"dtype": "F32"}, {"dtype": "F32", "data_offsets": [0]},
        {"dtype": "F32", "data_offsets": [-9, 4]}, {"dtype": "F32", "data_offsets": [0.5, 4]},
        {"dtype": "F32", "data_offsets": [10**30, 10**31]},
        {"dtype": "F32", "data_offsets": [1, 10**18]}, {"dtype": "F64", "data_offsets": [0, 3]},
    ],
)  # fmt: skip
def test_what_is_no_tensor_hides_no_bad_weight(tmp_path: Path, other: object) -> None:
    file = tmp_path / "weights.safetensors"
    for header in ({"a": other, "b": NAN}, {"a": other, "b": other, "c": NAN}):
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", float("nan")))
        with pytest.raises(PolicyError, match=r"`[bc]`"):
            check_finite(file)


@pytest.mark.parametrize("text", [b"[]", b"\xff", b"{", b"[" * 100_000, b"7"])
def test_what_is_no_header_is_left_to_the_server(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    for length in (len(text), 2**63, 0):
        file.write_bytes(struct.pack("<Q", length) + text)
        check_finite(file)
