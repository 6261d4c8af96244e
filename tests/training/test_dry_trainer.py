"""The dry trainer checks rows and leaves a real artifact; the same job is not run twice."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import StoreError, TrainingError, UsageError
from agentloop.files import sha256_of
from agentloop.ports import Trainer
from agentloop.records import Message, Row, TrainingJob
from agentloop.training import artifact
from agentloop.training.dry import DryTrainer

ROW = Row(
    episode="ep",
    prompt=(Message(role="user", content="hi"),),
    segments=((1, 2), (3,)),
    sampled=(True, False),
)


def job(tmp_path: Path, *rows: Row) -> TrainingJob:
    dataset = freeze(rows or (ROW,), {}, tmp_path / "datasets")
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text('{"hidden_size": 12, "num_attention_heads": 3}')
    return TrainingJob(
        method="agentloop.training.dry:train",
        base=str(base),
        dataset=str(rows_path(tmp_path / "datasets", dataset)),
        out=str(tmp_path / "out"),
    )


def tensors(path: Path) -> dict[str, list[int]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    end = max(entry["data_offsets"][1] for entry in header.values())
    assert len(data) == 8 + size + end and not any(data[8 + size :])
    return {name: entry["shape"] for name, entry in header.items()}


def test_it_leaves_an_adapter_of_zeros_with_a_manifest(tmp_path: Path) -> None:
    trainer = DryTrainer()
    assert isinstance(trainer, Trainer)
    result = asyncio.run(trainer.train(job(tmp_path)))
    out = Path(result.adapter)
    assert result.sha256 == sha256_of(out / artifact.WEIGHTS)
    assert result.metrics["sampled_tokens"] == 2
    shapes = tensors(out / artifact.WEIGHTS)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    assert shapes == {f"{layer}.lora_A.weight": [1, 12], f"{layer}.lora_B.weight": [12, 1]}
    assert json.loads((out / artifact.CONFIG).read_text())["peft_type"] == "LORA"


def test_a_finished_job_is_returned_and_another_is_refused(tmp_path: Path) -> None:
    first = job(tmp_path)
    result = asyncio.run(DryTrainer().train(first))
    assert asyncio.run(DryTrainer().train(first)) == result  # equal seconds: it was not run
    with pytest.raises(TrainingError, match="another job"):
        asyncio.run(DryTrainer().train(replace(first, seed=1)))
    other_rows = replace(ROW, segments=((9, 9), (3,)))
    with pytest.raises(TrainingError, match="another job"):
        asyncio.run(DryTrainer().train(job(tmp_path, other_rows)))


def test_a_damaged_result_is_not_used(tmp_path: Path) -> None:
    first = job(tmp_path)
    asyncio.run(DryTrainer().train(first))
    (tmp_path / "out" / artifact.WEIGHTS).write_bytes(b"x")
    with pytest.raises(StoreError, match="was changed"):
        asyncio.run(DryTrainer().train(first))


def test_rows_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sampled token"):
        asyncio.run(DryTrainer().train(job(tmp_path, replace(ROW, sampled=(False, False)))))
    assert not (tmp_path / "out").exists()


def test_the_loser_of_a_race_returns_the_winners_result(tmp_path: Path) -> None:
    one = job(tmp_path)

    def slow(directory: Path) -> None:
        asyncio.run(DryTrainer().train(one))  # the winner publishes meanwhile
        for name in (artifact.CONFIG, artifact.WEIGHTS):
            (directory / name).write_bytes(b"loser")

    result = artifact.publish(one, slow, metrics={}, seconds=0.0)
    assert result == artifact.finished(one)
    assert result.metrics["rows"] == 1


def test_only_safetensors_and_json_are_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"model\.bin"):
        artifact.publish(
            job(tmp_path), lambda at: (at / "model.bin").touch(), metrics={}, seconds=0.0
        )
    assert not (tmp_path / "out").exists()
