"""A policy and its base become one model that says what the two said together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import chat_llama
import pytest

from agentloop.cli import run
from agentloop.errors import StoreError, TrainingError, UsageError
from agentloop.files import read_manifest, sha256_of
from agentloop.policies.export import export
from agentloop.policies.registry import Policies, policy_id
from agentloop.records import TrainingResult

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_llama.make(tmp_path_factory.mktemp("base"))


def adapted(base: Path, folder: Path, task: str = "CAUSAL_LM") -> TrainingResult:
    """An adapter far from nothing."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(len(task))
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type=task)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    return TrainingResult(adapter=str(folder), sha256=sha256_of(weights))


def whole(folder: Path) -> TrainingResult:
    chat_llama.make(folder, seed=9)
    return TrainingResult(adapter=str(folder), sha256=sha256_of(folder / "model.safetensors"))


def admitted(tmp_path: Path, base: Path, result: TrainingResult) -> tuple[Policies, str]:
    policies = Policies(tmp_path / "home" / "policies")
    return policies, policy_id(policies.admit(result, base=str(base)))


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_an_export_says_what_policy_and_base_said(
    base: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = adapted(base, tmp_path / "a") if kind == "adapter" else whole(tmp_path / "a")
    policies, name = admitted(tmp_path, base, result)
    place = ["--home", str(tmp_path / "home")]
    assert run(["policies", "export", name, str(tmp_path / "out"), *place, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert run(["policies", "export", name, str(tmp_path / "out"), *place]) == 0
    assert "wrote" in capsys.readouterr().out
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        bare = AutoModelForCausalLM.from_pretrained(base)
        before = bare(ids).logits
        if kind == "adapter":
            said = PeftModel.from_pretrained(bare, policies.path(name))(ids).logits
        else:
            said = AutoModelForCausalLM.from_pretrained(tmp_path / "a")(ids).logits
    torch.testing.assert_close(exported, said, rtol=1e-4, atol=1e-4)
    assert float((exported - before).abs().max()) > 0.1
    assert read_manifest(tmp_path / "out")["policy"] == name
    assert not list((tmp_path / "out").glob("adapter*")) + list((tmp_path / "out").glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == chat_llama.TEMPLATE


def test_the_embedded_engine_loads_an_export(base: Path, tmp_path: Path) -> None:
    from agentloop.serving.model import LlamaLike

    policies, name = admitted(tmp_path, base, adapted(base, tmp_path / "a"))
    target = asyncio.run(export(policies, name, tmp_path / "out"))
    assert LlamaLike.load(target).shape.layers == 2


def test_what_cannot_be_exported_leaves_nothing(base: Path, tmp_path: Path) -> None:
    policies, name = admitted(tmp_path, base, adapted(base, tmp_path / "a"))
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        asyncio.run(export(policies, name, tmp_path / "there"))
    with pytest.raises(TrainingError, match=r"deadline of 0\.05 s"):
        asyncio.run(export(policies, name, tmp_path / "late", deadline=0.05))
    scorer, scoring = admitted(tmp_path, base, adapted(base, tmp_path / "b", task="SEQ_CLS"))
    with pytest.raises(UsageError, match="no language model"):
        asyncio.run(export(scorer, scoring, tmp_path / "scorer"))
    (policies.path(name) / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError, match="was changed"):
        asyncio.run(export(policies, name, tmp_path / "damaged"))
    gone, lost = admitted(tmp_path / "x", tmp_path / "no-base", adapted(base, tmp_path / "c"))
    with pytest.raises(UsageError, match="put it back"):
        asyncio.run(export(gone, lost, tmp_path / "gone"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "b", "c", "x", "home", "there"}
