"""The engine from the outside: text, stop strings, errors, adapters, cancellation."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from agentloop.errors import UsageError  # noqa: E402
from agentloop.serving.batch import Limits  # noqa: E402
from agentloop.serving.engine import Engine, Generation, NotServed, Options  # noqa: E402
from agentloop.serving.sampling import Sampling  # noqa: E402
from agentloop.serving.weights import check_model_dir  # noqa: E402


@pytest.fixture(scope="module")
def engine(model_dir):
    limits = Limits(max_batch=8, cache_bytes=2**22, prefill_tokens=64, slot_tokens=64)
    engine = Engine(model_dir, Options(limits=limits, gather_ms=1))
    yield engine
    engine.close()


def ask(engine, prompt, model="", **sampling):
    given = {"max_tokens": 20, "ignore_eos": True, "seed": 1} | sampling
    return engine.submit(Generation(prompt, Sampling(**given), model)).result(30)


PROMPT = list(range(10, 60))


def test_text_is_what_the_ids_say(engine):
    done = ask(engine, PROMPT)
    assert done.text == engine.tokenizer.decode(done.token_ids, skip_special_tokens=True)
    assert len(done.token_ids) == len(done.logprobs) == 20 and done.finish == "length"
    assert ask(engine, PROMPT).token_ids == done.token_ids


def test_stop_strings_end_the_text_but_keep_the_ids(engine):
    free = ask(engine, PROMPT, max_tokens=40, seed=3)
    mark = free.text[10:12]
    at = free.text.find(mark)
    done = ask(engine, PROMPT, max_tokens=40, seed=3, stop=("never there", mark))
    assert done.finish == "stop" and done.text == free.text[:at]
    assert free.token_ids[: len(done.token_ids)] == done.token_ids
    assert mark in engine.tokenizer.decode(done.token_ids, skip_special_tokens=True)


def test_an_end_token_is_returned_but_not_shown(engine):
    done = ask(engine, PROMPT, ignore_eos=False, max_tokens=1500, temperature=50.0)
    assert done.finish == "stop"
    assert done.token_ids[-1] == 2 and 2 not in done.token_ids[:-1]
    assert "<|im_end|>" not in done.text


def test_scoring_agrees_with_generation(engine):
    done = ask(engine, PROMPT)
    whole = PROMPT + done.token_ids
    work = Generation(whole, Sampling(max_tokens=0), prompt_logprobs=True)
    scores = engine.submit(work).result(30)
    assert scores.token_ids == []
    assert scores.prompt_logprobs[len(PROMPT) - 1 :] == pytest.approx(done.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "given", "says"),
    [
        ([], {}, "no tokens"),
        ([5, 259], {}, "between 0 and 258"),
        ([5] * 2000, {"max_tokens": 100}, "context overflow"),
    ],
)
def test_impossible_requests_say_why(engine, prompt, given, says):
    with pytest.raises(ValueError, match=says):
        ask(engine, prompt, **given)


def test_adapters_come_and_go(engine, adapters):
    base = ask(engine, PROMPT)
    engine.load("red", adapters["red"]).result(30)
    red = ask(engine, PROMPT, "red")
    assert red.token_ids != base.token_ids and red.cached == 0
    engine.load("red", adapters["blue"]).result(30)
    blue = ask(engine, PROMPT, "red")
    assert blue.cached == 0 and blue.token_ids != red.token_ids  # never the old adapter's KV
    assert ask(engine, PROMPT).token_ids == base.token_ids
    engine.unload("red").result(30)
    with pytest.raises(NotServed, match="no model `red`"):
        ask(engine, PROMPT, "red")
    with pytest.raises(NotServed, match="no adapter"):
        engine.unload("red")


def broken(folder, target, change):
    """A copy of an adapter with one thing wrong."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (target / "adapter_config.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, target / "adapter_model.safetensors")
    else:
        (target / "adapter_model.bin").write_bytes(b"pickle")
    return target


def first(tensors, part):
    return next(key for key in tensors if part in key)


def _nan(config, tensors):
    tensors[first(tensors, "lora_A")][0, 0] = float("nan")


def _shape(config, tensors):
    key = first(tensors, "lora_A")
    tensors[key] = tensors[key][:, :-1].contiguous()


def _half(config, tensors):
    del tensors[first(tensors, "lora_B")]


def _place(config, tensors):
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 48)


def _rank(config, tensors):
    config["r"] = 5


def _dora(config, tensors):
    config["use_dora"] = True


def _pickle(config, tensors):
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_nan, "finite"),
        (_shape, "shapes"),
        (_half, "lacks its lora_A or lora_B"),
        (_place, "no place for"),
        (_rank, "its config says 5"),
        (_dora, "use_dora"),
        (_pickle, "pickled"),
    ],
)
def test_a_bad_adapter_is_refused_and_named(engine, adapters, tmp_path, change, says):
    folder = broken(adapters["red"], tmp_path / "bad", change)
    with pytest.raises(UsageError, match=says):
        engine.load("bad", folder).result(30)
    assert "bad" not in engine.adapters


def test_a_cancelled_request_frees_its_row(engine):
    prompt = list(range(60, 100))
    work = Generation(prompt, Sampling(max_tokens=1500, ignore_eos=True, seed=0))
    futures = [engine.submit(work) for _ in range(16)]
    assert all(future.cancel() for future in futures)
    assert ask(engine, PROMPT).finish == "length"


def test_an_unknown_architecture_falls_back_to_transformers(tmp_path, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine(tmp_path, Options())
    try:
        done = ask(engine, PROMPT)
        with torch.no_grad():
            table = model(torch.tensor([PROMPT + done.token_ids])).logits[0].log_softmax(-1)
        for index, (token, logprob) in enumerate(zip(done.token_ids, done.logprobs, strict=True)):
            assert logprob == pytest.approx(float(table[len(PROMPT) - 1 + index, token]), abs=1e-4)
        with pytest.raises(UsageError, match="without adapters"):
            engine.load("x", tmp_path)
    finally:
        engine.close()


def test_only_safetensors_are_read(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json"):
        check_model_dir(tmp_path)
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        check_model_dir(tmp_path)
