"""The chat format as a server sees it: what was said comes back as what was recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.gateway.protocol import body_of, chunks_of, parse
from agentloop.models import wire
from agentloop.records import Completion, Message, OwnSampling, Request, ToolCall, Usage
from agentloop.trajectories.arguments import UNPARSED

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(text, json_values, max_size=3) | st.builds(
    lambda raw: {UNPARSED: raw}, st.sampled_from(["{", "[1]", "not JSON", '"x"', "{]"])
)
calls = st.lists(
    st.builds(ToolCall, id=st.uuids().map(str), name=st.sampled_from(["add", "find"]),
              arguments=arguments), max_size=3,
).map(tuple)  # fmt: skip
messages = st.builds(Message, role=st.just("assistant"), content=text, tool_calls=calls)


FIELDS = (
    "messages", "tools", "tool_choice", "stream", "stream_options", "stop", "temperature",
    "max_tokens", "seed", "top_k", "n", "response_format",
)  # fmt: skip


def completion(message: Message, finish: str = "stop") -> Completion:
    usage = Usage(prompt_tokens=3, completion_tokens=2, calls=1)
    return Completion(message=message, finish_reason=finish, usage=usage, model="m")


@given(messages)
def test_a_reply_that_is_sent_back_is_the_message_that_was_recorded(message: Message) -> None:
    said = body_of(completion(message), "id-1")["choices"][0]["message"]
    body = {"messages": [{"role": "user", "content": "x"}, json.loads(json.dumps(said))]}
    assert parse(json.dumps(body).encode()).request.messages[1] == message


@given(messages, st.booleans())
def test_the_chunks_of_a_stream_add_up_to_the_reply(message: Message, usage: bool) -> None:
    whole = body_of(completion(message), "id-1")
    chunks = list(chunks_of(completion(message), "id-1", usage=usage))
    content, made, finish = "", [], None
    for chunk in chunks:
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            made += choice["delta"].get("tool_calls", [])
            finish = choice["finish_reason"] or finish
    said = whole["choices"][0]["message"]
    assert content == (said["content"] or "") and finish == "stop"
    assert [call.pop("index") for call in made] == list(range(len(message.tool_calls)))
    assert made == said.get("tool_calls", [])
    assert chunks[-1].get("usage") == (whole["usage"] if usage else None)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_is_a_request_or_a_usage_error(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse(data)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json_values)))
def test_whatever_a_field_holds_nothing_else_is_raised(fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]} | fields
    try:
        ask = parse(json.dumps(body).encode())
    except UsageError:
        return
    assert ask.request.messages


@given(
    st.dictionaries(text, json_values | st.floats(), max_size=3).map(json.dumps)
    | st.sampled_from(
        ['{"a": NaN}', '{"a": [Infinity]}', '{"a": {"b": -1e999}}', '{"a": "\\ud800"}',
         '{"a": 1e2}', '{"_unparsed": "x"}', '{"_unparsed": "{}", "a": 1}',
         '{"_unparsed": "{}"}', '{"a": 1, "a": 2}', "[1]", "{", " ",
         f'{{"a": {"9" * 5000}}}']
    )
)  # fmt: skip
def test_whatever_arguments_a_model_writes_come_back_as_they_were_read(written: str) -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": written}}
    answer = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    asked = Request(messages=(Message(role="user", content="x"),))
    read = wire.decode(answer, asked, "m", where="here", seconds=0)
    said = body_of(read, "id-1")["choices"][0]["message"]
    body = {"messages": [{"role": "user", "content": "x"}, said]}
    assert parse(json.dumps(body).encode()).request.messages[1] == read.message
    [made] = read.message.tool_calls
    json.dumps(made.arguments, allow_nan=False).encode()  # no NaN, and Unicode


def test_what_a_client_set_is_told_from_what_it_left_open() -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert parse(json.dumps(body).encode()).request.sampling == OwnSampling()
    body |= {"temperature": 0, "max_tokens": 256, "stop": [], "seed": None}
    asked = parse(json.dumps(body).encode()).request.sampling
    assert isinstance(asked, OwnSampling) and asked.given == {"temperature", "max_tokens"}


def test_an_unknown_reason_to_end_is_told_as_a_plain_stop() -> None:
    message = Message(role="assistant", content="x")
    assert body_of(completion(message, "unknown"), "i")["choices"][0]["finish_reason"] == "stop"
    assert body_of(completion(message, "length"), "i")["choices"][0]["finish_reason"] == "length"


def test_a_choice_of_tool_offers_only_that_one() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "find")]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    for choice, offered in (
        (None, ["add", "find"]), ("auto", ["add", "find"]), ("required", ["add", "find"]),
        ("none", []), ({"type": "function", "function": {"name": "find"}}, ["find"]),
    ):  # fmt: skip
        request = parse(json.dumps(body | {"tool_choice": choice}).encode()).request
        assert [tool.name for tool in request.tools] == offered
