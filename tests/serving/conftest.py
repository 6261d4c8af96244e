"""A tiny Llama-like model and a byte-level ChatML tokenizer, saved as a model directory."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *letters])}
    raw = Tokenizer(BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        additional_special_tokens=special,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build(folder: Path, kind: str) -> Path:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(0)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    built = model(
        config(
            vocab_size=259, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=2048, initializer_range=0.6, eos_token_id=2, bos_token_id=1,
            pad_token_id=2, tie_word_embeddings=kind != "qwen3",
        )
    )  # fmt: skip
    with torch.no_grad():  # biases and norms start at trivial values that would hide mistakes
        for name, value in built.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(torch.randn_like(value) * 0.3)
    built.save_pretrained(folder, safe_serialization=True)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _quiet(make, *given):
    with warnings.catch_warnings():  # peft asks transformers for something deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return make(*given)


@pytest.fixture(scope="session")
def build_model():
    """`(folder, kind) -> folder`: a saved tiny model."""
    return build


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def adapters(model_dir, tmp_path_factory):
    """Two random LoRA adapters in peft's own format: {name: folder}."""
    import peft

    out = {}
    for name, targets, rank in (
        ("red", ["q_proj", "v_proj", "down_proj"], 4),
        ("blue", ["k_proj", "o_proj", "gate_proj", "up_proj", "q_proj", "v_proj"], 8),
    ):
        base = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        config = peft.LoraConfig(
            r=rank, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"
        )
        torch.manual_seed(len(name))
        model = _quiet(peft.get_peft_model, base, config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_B" in key:
                    value.normal_(std=0.5)
        out[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(out[name])
    return out


@pytest.fixture(scope="session")
def reference(model_dir, adapters):
    """`(ids, adapter name or None) -> log-probs [len(ids), vocab]` by transformers and peft."""
    import peft

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    models = {None: load()}
    for name, folder in adapters.items():
        models[name] = _quiet(peft.PeftModel.from_pretrained, load(), folder)

    def logprobs(ids, adapter=None):
        with torch.no_grad():
            return models[adapter](torch.tensor([ids])).logits[0].log_softmax(-1)

    return logprobs


@pytest.fixture
def tokenizer():
    return byte_tokenizer()
