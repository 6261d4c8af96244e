"""Worked examples: the model's words to the letter, and back to code and output."""

from __future__ import annotations

from dataclasses import replace

from skill_world import solved

from agentloop.records import Episode, Message, Node, ToolCall, Trajectory
from agentloop.trajectories.examples import code_blocks, format_example, uses_tools


def talk(*messages: Message) -> Episode:
    nodes = tuple(Node(parent=at - 1 if at else None, message=m) for at, m in enumerate(messages))
    return replace(solved("x", "What?", "", ""), trajectories=(Trajectory(nodes=nodes),))


def test_wording() -> None:
    text = format_example(solved("x", "What is 2 + 3?", "print(2 + 3)", "5"))
    assert text == (
        "Question: What is 2 + 3?\n\nAssistant:\n```python\nprint(2 + 3)\n```\n\n"
        "Output:\n5\n\nAssistant:\nAnswer: 5"
    )
    assert code_blocks(text) == [("print(2 + 3)", "5")]


def test_several_examples_and_outputs_of_several_lines() -> None:
    one = solved("x", "a?", "print(1)\n\nprint(2)", "1\n\n2")
    two = solved("y", "b?", "print(3)", "3")
    text = f"{format_example(one)}\n\n{format_example(two)}"
    assert code_blocks(text) == [("print(1)\n\nprint(2)", "1\n\n2"), ("print(3)", "3")]


def test_native_calls_are_spelled_out_once() -> None:
    call = ToolCall(id="1", name="python", arguments={"code": "print(1)"})
    native = Message(role="assistant", content="", tool_calls=(call,))
    plain = Message(role="assistant", content="```python\nprint(1)\n```", tool_calls=(call,))
    stopped = Message(role="assistant", content="```python\nprint(1)", tool_calls=(call,))
    rest = (Message(role="tool", content="1"), Message(role="assistant", content="1"))
    texts = [format_example(talk(first, *rest)) for first in (native, plain, stopped)]
    assert texts[0] == texts[1] == texts[2]
    two = ToolCall(id="1", name="add", arguments={"a": 1, "b": 2})
    other = Message(role="assistant", content="I add.", tool_calls=(two,))
    assert 'I add.\n```add\n{"a": 1, "b": 2}\n```' in format_example(talk(other, *rest))


def test_an_output_that_names_itself_gets_one_heading() -> None:
    for said in ("Output:\n5", "Output of python:\n5", "5"):
        episode = talk(
            Message(role="assistant", content="```python\nprint(5)\n```"),
            Message(role="user", content=said),
            Message(role="assistant", content="5"),
        )
        assert format_example(episode).count("Output") == 1
        assert uses_tools(episode)


def test_the_newest_branch_of_the_first_trainable_role() -> None:
    user, old, new = (
        Message(role="user", content="What?"),
        Message(role="assistant", content="old"),
        Message(role="assistant", content="new"),
    )
    nodes = (
        Node(parent=None, message=user),
        Node(parent=0, message=old),
        Node(parent=0, message=new),
    )
    judge = Trajectory(role="judge", trainable=False, nodes=nodes[:2])
    episode = replace(talk(user), trajectories=(judge, Trajectory(nodes=nodes)))
    assert format_example(episode) == "Question: What?\n\nAssistant:\nnew"
    assert not uses_tools(episode)


def test_no_reply_is_no_example() -> None:
    assert format_example(talk(Message(role="user", content="What?"))) == ""
    assert format_example(replace(talk(), trajectories=())) == ""
