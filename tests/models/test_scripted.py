"""The public fake: lists, functions, recorded files; deterministic ids and counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentloop.errors import ModelError, UsageError
from agentloop.models.scripted import Recorder, Scripted
from agentloop.records import Completion, Message, Request, ToolCall

CALL = ToolCall(id="c", name="python", arguments={"code": "1 + 1"})
USE_TOOL = Message(role="assistant", content="", tool_calls=(CALL,))


def asked(*texts: str) -> Request:
    """A conversation: user, assistant, user, ..."""
    roles = ("user", "assistant")
    return Request(
        messages=tuple(
            Message(role=roles[n % 2], content=text)  # type: ignore[arg-type]
            for n, text in enumerate(texts)
        )
    )


def say(model: Scripted | Recorder, request: Request) -> Completion:
    return asyncio.run(model.complete(request))


def test_a_list_in_order_then_an_error() -> None:
    model = Scripted(["one two", USE_TOOL])
    assert say(model, asked("a b c")).message.content == "one two"
    assert say(model, asked("a")).message.tool_calls == (CALL,)
    with pytest.raises(ModelError, match="2 replies"):
        say(model, asked("a"))
    assert model.calls == 3
    assert (model.usage.prompt_tokens, model.usage.calls) == (4, 2)


def test_each_prompt_continues_the_tokens_before() -> None:
    model = Scripted(lambda request: USE_TOOL if len(request.messages) == 1 else "it is 2")
    first = say(model, asked("what is 1 + 1"))
    assert first.prompt_ids and first.completion_ids
    then = Request(
        messages=(
            *asked("what is 1 + 1").messages,
            first.message,
            Message(role="tool", content="2", tool_call_id="c"),
        )
    )
    second = say(model, then)
    known = first.prompt_ids + first.completion_ids
    assert second.prompt_ids is not None and second.prompt_ids[: len(known)] == known
    assert len(second.logprobs or ()) == len(second.completion_ids or ()) == 3
    assert say(model, then).prompt_ids == second.prompt_ids


def test_a_file_whole_text_before_part_and_turns(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(
        '{"match": "sum", "reply": "part"}\n'
        '{"match": "the sum", "reply": "whole"}\n'
        "\n"
        '{"match": "long", "turn": 0, "reply": {"tool_calls": '
        '[{"id": "c", "name": "python", "arguments": {"code": "1 + 1"}}]}}\n'
        '{"match": "long", "turn": 1, "reply": "done"}\n'
        '{"match": "coin", "reply": "heads"}\n'
        '{"match": "coin", "reply": "tails"}\n'
    )
    model = Scripted(path)
    assert say(model, asked("the sum")).message.content == "whole"
    assert say(model, asked("a sum too")).message.content == "part"
    assert say(model, asked("long")).message.tool_calls == (CALL,)
    assert say(model, asked("long", "x", "long")).message.content == "done"
    tossed = [say(model, asked("coin")).message.content for _ in range(3)]
    assert tossed == ["heads", "tails", "heads"]
    with pytest.raises(ModelError, match="no reply"):
        say(model, asked("unknown"))


def test_a_recording_replays_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    real = Scripted(lambda request: USE_TOOL if len(request.messages) == 1 else "it is 2")
    requests = [asked("1 + 1"), asked("1 + 1", "x", "1 + 1"), asked("other")]
    said = [say(Recorder(real, path), request) for request in requests]
    replay = Scripted(path)
    assert [say(replay, request) for request in reversed(requests)] == said[::-1]


@pytest.mark.parametrize("line", ["{", '{"match": "a"}', '{"match": "a", "reply": {"role": 3}}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(f'{{"match": "a", "reply": "b"}}\n{line}\n')
    with pytest.raises(UsageError, match="line 2"):
        Scripted(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Scripted(tmp_path / "none.jsonl")
