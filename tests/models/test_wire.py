"""Whatever an endpoint answers, it is a `Completion` or one typed error."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
from fake_endpoint import chat
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import ModelError
from agentloop.models import faults, wire
from agentloop.records import Completion, Message, Request
from agentloop.trajectories.arguments import UNPARSED
from agentloop.trajectories.codec import decode, encode

REQUEST = Request(messages=(Message(role="user", content="hi"),))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def parse(body: object) -> Completion:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.decode(data, REQUEST, "m", where="there", seconds=0.1)


@given(st.binary(max_size=64) | JSON)
def test_any_bytes_are_a_completion_or_a_retryable_error(body: object) -> None:
    with pytest.raises(ModelError) as caught:
        parse(body)
    assert caught.value.retryable


@given(
    st.dictionaries(st.sampled_from(["content", "tool_calls", "role"]), JSON),
    st.dictionaries(st.sampled_from(["finish_reason", "token_ids", "logprobs"]), JSON),
    JSON,
)
def test_any_reply_survives_the_log(
    message: object, choice: dict[str, object], usage: object
) -> None:
    try:
        done = parse({"choices": [{"message": message, **choice}], "usage": usage})
    except ModelError as error:
        assert error.retryable
    else:
        assert decode(Completion, encode(done)) == done
        assert min(done.usage.prompt_tokens, done.usage.completion_tokens) >= 0


@given(st.text(), st.dictionaries(st.text(), JSON))
def test_arguments_come_back_as_sent(content: str, arguments: dict[str, object]) -> None:
    clean = json.loads(
        json.dumps(arguments, allow_nan=True).replace("NaN", "0").replace("Infinity", "1")
    )
    body = chat(content, tools=[("t", clean)])
    (call,) = parse(body).message.tool_calls
    assert call.arguments == clean


@pytest.mark.parametrize(
    "text", ["{", "[1]", "3", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 10_000]
)
def test_arguments_that_are_not_a_json_object_are_kept_as_text(text: str) -> None:
    (call,) = parse(chat("", tools=[("t", text)])).message.tool_calls
    assert call.arguments == {UNPARSED: text}


@pytest.mark.parametrize("text", ["", "  "])
def test_no_arguments_are_an_empty_object(text: str) -> None:
    assert parse(chat("", tools=[("t", text)])).message.tool_calls[0].arguments == {}


def test_tool_calls_get_ids_of_their_own() -> None:
    body = chat("", tools=[("a", {}), ("b", {}), ("c", {})])
    calls = body["choices"][0]["message"]["tool_calls"]
    calls[0]["id"] = calls[1]["id"] = "same"
    del calls[2]["id"]
    ids = [call.id for call in parse(body).message.tool_calls]
    assert ids[0] == "same" and len(set(ids)) == 3


def test_null_content_parts_and_odd_usage() -> None:
    assert parse(chat(None)).message.content == ""
    body = chat("")
    body["choices"][0]["message"]["content"] = [{"type": "text", "text": "a"}, {"text": "b"}]
    body["usage"] = {"prompt_tokens": -5, "completion_tokens": None, "prompt_tokens_details": None}
    done = parse(body)
    assert done.message.content == "ab"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.calls) == (0, 0, 1)


@pytest.mark.parametrize("count", [10**25, -5, 2**31])
def test_a_count_that_cannot_be_one_is_not_believed(count: int) -> None:
    body = chat("x", ids=([1, 2], [3], [-0.5]), usage=(count, count))
    body["usage"]["prompt_tokens_details"] = {"cached_tokens": count}
    usage = parse(body).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (2, 1, 0)


@pytest.mark.parametrize("bad", [-5, 2**32, 2**70])
def test_ids_that_cannot_be_ids_are_not_used(bad: int) -> None:
    done = parse(chat("x", ids=([1, bad], [3, 4], [-0.5, 0.0])))
    assert done.prompt_ids is None and done.completion_ids == (3, 4)
    done = parse(chat("x", ids=([1], [3, bad], [-0.5, -0.5])))
    assert done.prompt_ids == (1,) and done.message.token_ids is None
    assert done.completion_ids is done.logprobs is None


def test_a_log_prob_above_0_is_not_used() -> None:
    assert parse(chat("x", ids=([1], [3], [0.5]))).logprobs is None
    assert parse(chat("x", ids=([1], [3], [1e-7]))).logprobs == (1e-7,)


def test_a_reply_with_half_a_surrogate_pair_is_a_reply() -> None:
    body = json.dumps(chat("caf\ud800 \U0001f600", ids=([1], [3], [-0.5])))
    assert "\\ud800" in body
    for data in (body.encode(), json.loads(body)):
        done = wire.decode(data, REQUEST, "m", where="there", seconds=0.1)
        assert done.message.content == "caf? \U0001f600" and done.completion_ids == (3,)


@pytest.mark.parametrize("served", ["base", "policy-2"])
def test_another_model_s_reply_is_not_taken_for_the_policy_s(served: str) -> None:
    request = Request(messages=REQUEST.messages, policy="policy-1")
    body = json.dumps(chat("hi", model="policy-1")).encode()
    assert wire.decode(body, request, "base", where="there", seconds=0.1).policy == "policy-1"
    other = json.dumps(chat("hi", model=served)).encode()
    with pytest.raises(ModelError, match=f"`{served}` in place of policy `policy-1`") as caught:
        wire.decode(other, request, "base", where="there", seconds=0.1)
    assert not caught.value.retryable


# --- what is sent --------------------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(codec=None)), JSON))
def test_a_body_is_json_that_means_the_same(body: dict[str, object]) -> None:
    assert repr(json.loads(wire.dump(body))) == repr(json.loads(json.dumps(body)))


def test_text_that_is_not_unicode_is_sent_escaped() -> None:
    request = Request(messages=(Message(role="tool", content="caf\udce9", tool_call_id="1"),))
    assert b"caf\\udce9" in wire.dump(wire.encode(request, "m"))


# --- Retry-After and statuses -------------------------------------------------------------------


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert faults.retry_after({"Retry-After": "1.5"}) == 1.5
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < (faults.retry_after({"Retry-After": later}) or 0) <= 30
    assert faults.retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


@given(st.text())
def test_any_retry_after_is_a_sane_number_or_none(text: str) -> None:
    seconds = faults.retry_after({"Retry-After": text})
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_spent_quota_is_not_tried_again() -> None:
    body = json.dumps({"error": {"message": "no money", "code": "insufficient_quota"}})
    error = faults.from_status(429, body, {}, where="there")
    assert not error.retryable and "no money" in str(error)


@pytest.mark.parametrize("status", [400, 413])
def test_overflow_by_its_words(status: int) -> None:
    said = "context overflow: 9 prompt tokens and max_tokens 9 exceed this model's 16 tokens"
    assert faults.from_status(status, said, {}, where="ours").reason == "context_overflow"
    text = "the prompt exceeds the context window"
    assert faults.from_status(status, text, {}, where="there").reason == "context_overflow"
    assert faults.from_status(status, "no", {}, where="there").reason == "model_error"


def test_a_key_is_taken_out_before_a_long_text_is_cut() -> None:
    key = "sk-0123456789abcdef"
    for before in range(280, 301):
        text = str(faults.from_status(401, "." * before + key, {}, where="there", secret=key))
        assert "sk-" not in text
