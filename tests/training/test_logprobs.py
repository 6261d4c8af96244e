"""Models whose layers see a part of the context only: nothing is shared that changes a value."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from peft import LoraConfig, get_peft_model  # noqa: E402
from tiny_llama import VOCABULARY, llama  # noqa: E402
from transformers import DynamicCache, MistralConfig, MistralForCausalLM  # noqa: E402

from agentloop.training.logprobs import project_labelled_only, sees_all  # noqa: E402
from agentloop.training.replay import _spread  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
SHARED, WIDTH = 14, 22


def mistral(window: int | None) -> Any:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, sliding_window=window,
    )  # fmt: skip
    return MistralForCausalLM(config)


def batch() -> dict[str, Any]:
    """Two rows that begin alike and end apart, as a pair is given to the model."""
    ids = torch.randint(2, VOCABULARY, (2, WIDTH), generator=torch.Generator().manual_seed(0))
    ids[1, :SHARED] = ids[0, :SHARED]
    labels = ids.clone()
    labels[:, : SHARED + 1] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def scored(model: Any, *, pairs: bool) -> Any:
    project_labelled_only(model, pairs=pairs)
    return model(**batch(), fused_lm_head=True).log_probs


def test_what_a_layer_sees() -> None:
    assert sees_all(llama()) and sees_all(mistral(None))
    assert not sees_all(mistral(6))


@pytest.mark.parametrize("window", [None, 6])
def test_a_pair_has_the_values_of_its_rows(window: int | None, caplog: Any) -> None:
    apart, together = (scored(mistral(window), pairs=pairs) for pairs in (False, True))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert ("no beginning of a pair is shared" in caplog.text) == (window is not None)


def test_remembered_keys_have_the_window_of_the_model() -> None:
    """What groups share goes through the library's own cache, which knows about windows."""
    model, ids = mistral(6), batch()["input_ids"]
    whole = model(input_ids=ids).logits[:, SHARED:]
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=ids[:1, :SHARED], past_key_values=cache, use_cache=True)
    _spread(cache, torch.tensor([0, 0]))
    rest = model(input_ids=ids[:, SHARED:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_the_head_counts_and_learns_in_pairs() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(mistral(None), config)
    given = batch()
    logp = model(input_ids=given["input_ids"]).logits[:, :-1].log_softmax(-1)
    plain = logp.gather(-1, given["input_ids"][:, 1:, None])[..., 0]
    found = scored(model.get_base_model(), pairs=True)
    wanted = given["labels"][:, 1:] != -100
    torch.testing.assert_close(found[wanted], plain[wanted], rtol=1e-4, atol=1e-4)
    found.sum().backward()
    learned = [one.grad for one in model.parameters() if one.requires_grad]
    assert all(one is not None and bool(one.any()) for one in learned)
