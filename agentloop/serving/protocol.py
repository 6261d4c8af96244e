"""OpenAI/vLLM request bodies in, engine requests out, and completions back to response bodies.

The decision worth knowing: a field that the engine cannot honour is refused by name, never ignored,
because a silently different sampling distribution would poison training data.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import cast

from agentloop.serving.engine import Engine, Generated, Generation
from agentloop.serving.sampling import Sampling
from agentloop.trajectories.chat_format import ChatMessage, render_chat, text_of

Body = Mapping[str, object]
_SAMPLING = frozenset(
    {"model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed",
     "stop", "ignore_eos", "logprobs", "top_logprobs", "return_token_ids", "prompt_logprobs",
     "user", "metadata", "store", "add_generation_prompt", "echo"}
)  # fmt: skip
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1, None),
    "stream": (False, None),
    "stream_options": (None,),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "repetition_penalty": (1, None),
    "logit_bias": (None, {}),
    "min_p": (0, None),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "best_of": (1, None),
    "suffix": (None, ""),
}
"""Fields that are accepted only with a value that asks for nothing."""
_NO_TEXT = "`{}` has what a tokenizer cannot read: half a surrogate pair, or no text at all"
_COLDEST = 1e-6
"""Below it logits overflow in the division, and what is then sampled has no log-probability."""


def chat_request(engine: Engine, body: Body) -> tuple[Generation, bool]:
    """A chat completion's prompt and sampling, and whether rendering drifted. `ValueError` says
    which field is wrong."""
    _refuse(body, extra={"messages"})
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("`messages` must be a list of objects")
    flat = [{**m, "content": text_of(m.get("content"))} for m in messages]
    opens = _flag(body, "add_generation_prompt", default=True)
    try:
        rendered = render_chat(engine.tokenizer, cast(Sequence[ChatMessage], flat), opens)
    except TypeError as error:
        raise ValueError(_NO_TEXT.format("messages")) from error
    return _generation(body, rendered.ids, engine.context), rendered.drift


def completion_request(engine: Engine, body: Body) -> Generation:
    """A plain completion; `prompt` is a list of token ids, or text."""
    _refuse(body, extra={"prompt"})
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        try:
            prompt = engine.tokenizer.encode(prompt)
        except TypeError as error:
            raise ValueError(_NO_TEXT.format("prompt")) from error
    if not isinstance(prompt, list) or not all(type(item) is int for item in prompt):
        raise ValueError("`prompt` must be a list of token ids or a text")
    return _generation(body, prompt, engine.context)


def _refuse(body: Body, *, extra: set[str]) -> None:
    for key, value in body.items():
        if key in _SAMPLING or key in extra:
            continue
        if key not in _NEUTRAL:
            raise ValueError(f"the field `{key}` is not supported by the embedded engine")
        if value not in _NEUTRAL[key]:
            raise ValueError(f"`{key}` = {value!r} is not supported by the embedded engine")


def _generation(body: Body, prompt: list[int], context: int) -> Generation:
    scoring = _flag(body, "prompt_logprobs") or (
        _flag(body, "echo") and body.get("logprobs") not in (None, False)
    )
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    default = max(1, min(256, context - len(prompt)))
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise ValueError("`stop` must be a text or a list of texts")
    sampling = Sampling(
        max_tokens=int(_number(limit, "max_tokens", default, low=0 if scoring else 1, whole=True)),
        temperature=_temperature(body.get("temperature")),
        top_p=_number(body.get("top_p"), "top_p", 1.0, low=1e-9, high=1),
        top_k=max(0, int(_number(body.get("top_k"), "top_k", 0, low=-1, whole=True))),
        seed=None
        if body.get("seed") is None
        else int(_number(body["seed"], "seed", 0, low=-(2**63), high=2**63 - 1, whole=True)),
        stop=tuple(stops),
        ignore_eos=_flag(body, "ignore_eos"),
    )
    return Generation(prompt, sampling, str(body.get("model") or ""), scoring)


def _temperature(value: object) -> float:
    given = _number(value, "temperature", 1.0, low=0, high=100)
    if 0 < given < _COLDEST:
        raise ValueError(f"`temperature` must be 0 (greedy), or at least {_COLDEST:g}")
    return given


def _flag(body: Body, name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if name == "prompt_logprobs" and type(value) is int:  # vLLM's number of alternatives
        return True
    raise ValueError(f"`{name}` must be true or false")


def _number(
    value: object, name: str, default: float, *, low: float, high: float = 2**53,
    whole: bool = False,
) -> float:  # fmt: skip
    if value is None:
        return default
    fits = type(value) is int or (type(value) is float and not whole)
    if not fits or not low <= cast(float, value) <= high:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"`{name}` must be {kind} from {low:g} to {high:g}")
    return cast(float, value)


def response(
    engine: Engine, work: Generation, done: Generated, body: Body, *, drift: bool | None
) -> dict[str, object]:
    """The response body; `drift` is `None` for a plain completion."""
    chat = drift is not None
    choice: dict[str, object] = {"index": 0, "finish_reason": done.finish, "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": done.text}
    else:
        choice["text"] = done.text
    wanted = body.get("logprobs")
    if wanted is not None and wanted is not False:
        names = engine.tokenizer.convert_ids_to_tokens(done.token_ids)
        pairs = zip(names, done.logprobs, strict=True)
        choice["logprobs"] = (
            {"content": [{"token": token, "logprob": value} for token, value in pairs]}
            if chat
            else {"tokens": names, "token_logprobs": done.logprobs}
        )
    if done.prompt_logprobs is not None:
        choice["prompt_logprobs"] = [None, *done.prompt_logprobs]
    out: dict[str, object] = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": work.model or engine.options.name,
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(done.prompt),
            "completion_tokens": len(done.token_ids),
            "total_tokens": len(done.prompt) + len(done.token_ids),
            "prompt_tokens_details": {"cached_tokens": done.cached},
        },
    }
    if _flag(body, "return_token_ids"):
        out["prompt_token_ids"] = done.prompt
        choice["token_ids"] = done.token_ids
    if drift:
        out["drift"] = True
    return out
