"""The recorder: tokens along a branch are exactly what the engine read and sampled."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentloop.records import Completion, Message, Request, ToolCall, Trajectory, Usage
from agentloop.trajectories.codec import decode, encode
from agentloop.trajectories.recorder import Recorder

END = 1
ROLES = {"system": 3, "user": 4, "assistant": 5, "tool": 6}


class Engine:
    """A chat template over characters; a reply is sampled as ids that no tokeniser would give."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def prompt(self, messages: tuple[Message, ...], *, keep_ids: bool = True) -> tuple[int, ...]:
        ids: list[int] = []
        for message in messages:
            own = message.token_ids if keep_ids else None
            text = own if own is not None else [ord(char) for char in message.content]
            ids += [ROLES[message.role], *text, END]
        return (*ids, ROLES["assistant"])

    def reply(self, messages: tuple[Message, ...], *, keep_ids: bool = True) -> Completion:
        ids = tuple(self.random.randrange(1000, 2000) for _ in range(self.random.randrange(1, 5)))
        return Completion(
            message=Message(role="assistant", content="-".join(map(str, ids)), token_ids=ids),
            finish_reason="stop",
            usage=Usage(calls=1),
            model="m",
            prompt_ids=self.prompt(messages, keep_ids=keep_ids),
            completion_ids=ids,
            logprobs=tuple(-0.5 for _ in ids),
        )


def branch(trajectory: Trajectory, leaf: int) -> list[int]:
    path, at = [], leaf
    while at is not None:
        path.append(at)
        at = trajectory.nodes[at].parent
    return path[::-1]


def ids(trajectory: Trajectory, leaf: int) -> tuple[int, ...]:
    return tuple(t for at in branch(trajectory, leaf) for t in trajectory.nodes[at].token_ids)


def call(recorder: Recorder, engine: Engine, messages: list[Message], **how: bool) -> Completion:
    request = Request(messages=recorder.prepare(messages))
    completion = engine.reply(request.messages, **how)
    recorder.add(request, completion)
    return completion


def plain(message: Message) -> Message:
    return replace(message, token_ids=None)


MOVES = st.sampled_from(["continue", "again", "rewrite", "drop", "retokenise", "back", "prefill"])


@given(st.lists(MOVES, max_size=12), st.integers(0, 10**6))
def test_every_branch_reproduces_its_prompt_and_reply(moves: list[str], seed: int) -> None:
    engine, recorder = Engine(seed), Recorder()
    history = [Message(role="system", content="s"), Message(role="user", content="u")]
    expected: list[tuple[int, ...]] = []
    for number, move in enumerate(moves):
        sent = list(history)
        if move == "rewrite" and len(sent) > 2:
            sent[2] = replace(sent[2], content=f"rewritten {number}")
        elif move == "drop" and len(sent) > 2:
            del sent[1]
        elif move == "back":
            sent = sent[:2]
        elif move == "prefill":
            sent.append(Message(role="assistant", content=f"so {number}"))
        completion = call(recorder, engine, sent, keep_ids=move != "retokenise")
        assert completion.prompt_ids is not None and completion.completion_ids is not None
        expected.append(completion.prompt_ids + completion.completion_ids)
        if move != "again":
            result = Message(role="user", content=f"result {number}")
            history = [*sent, plain(completion.message), result]

    trajectory = recorder.trajectory()
    leaves = [at for at, node in enumerate(trajectory.nodes) if node.sampled]
    assert [ids(trajectory, leaf) for leaf in leaves] == expected
    for leaf in leaves:
        assert len(trajectory.nodes[leaf].logprobs or ()) == len(trajectory.nodes[leaf].token_ids)
    assert decode(Trajectory, encode(trajectory)) == trajectory


@given(st.integers(1, 8), st.integers(0, 10**6))
def test_a_conversation_is_one_branch_with_each_message_once(turns: int, seed: int) -> None:
    engine, recorder = Engine(seed), Recorder()
    history = [Message(role="system", content="s"), Message(role="user", content="u")]
    for turn in range(turns):
        completion = call(recorder, engine, history)
        history += [
            plain(completion.message),
            Message(role="tool", content=f"first {turn}", tool_call_id="1"),
            Message(role="tool", content=f"second {turn}", tool_call_id="2"),
        ]
    trajectory = recorder.trajectory()
    assert trajectory.drift == 0
    assert [node.parent for node in trajectory.nodes] == [None, *range(len(trajectory.nodes) - 1)]
    assert [node.message for node in trajectory.nodes] == history[:-2]
    # Tokens between two samples stand on the last message before the sample.
    assert [bool(node.token_ids) for node in trajectory.nodes][:3] == [False, True, True]


def test_a_retokenised_reply_forks_and_counts() -> None:
    engine, recorder = Engine(0), Recorder()
    history = [Message(role="user", content="u")]
    first = call(recorder, engine, history)
    history += [plain(first.message), Message(role="user", content="more")]
    call(recorder, engine, history, keep_ids=False)
    trajectory = recorder.trajectory()
    assert trajectory.drift == 1
    # The reply that was re-tokenised stands in the new branch as text that was not sampled there.
    assert [node.sampled for node in trajectory.nodes] == [False, True, False, False, True]


def test_outgoing_replies_carry_the_ids_that_were_sampled() -> None:
    engine, recorder = Engine(3), Recorder()
    history = [Message(role="user", content="u")]
    first = call(recorder, engine, history)
    history += [plain(first.message), Message(role="user", content="more")]
    prepared = recorder.prepare(history)
    assert prepared[1].token_ids == first.completion_ids
    assert prepared[0].token_ids is None and prepared[2].token_ids is None
    trimmed = recorder.prepare([Message(role="user", content="other"), history[1]])
    assert trimmed[1].token_ids == first.completion_ids
    assert recorder.prepare([Message(role="assistant", content="new")])[0].token_ids is None


def test_equal_replies_with_other_ids_are_told_apart_by_their_place() -> None:
    recorder = Recorder()
    same = Message(role="assistant", content="same")
    for text, reply in (("a", (7,)), ("b", (8,))):
        request = Request(messages=(Message(role="user", content=text),))
        completion = Completion(
            message=same, finish_reason="stop", usage=Usage(), model="m",
            prompt_ids=(ord(text),), completion_ids=reply, logprobs=(0.0,),
        )  # fmt: skip
        recorder.add(request, completion)
    first = recorder.prepare([Message(role="user", content="a"), same])
    assert first[1].token_ids == (7,)


def test_replies_without_ids_are_recorded_as_text() -> None:
    recorder = Recorder()
    user = Message(role="user", content="u")
    calls = (ToolCall(id="1", name="f", arguments={"x": 1}),)
    asked = Message(role="assistant", content="", tool_calls=calls)
    result = Message(role="tool", content="r", tool_call_id="1")
    for messages, reply in (
        ((user,), asked),
        ((user, asked, result), Message(role="assistant", content="done")),
    ):
        completion = Completion(message=reply, finish_reason="stop", usage=Usage(), model="m")
        recorder.add(Request(messages=messages), completion)
    trajectory = recorder.trajectory()
    assert [node.message.role for node in trajectory.nodes] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert all(node.token_ids == () and node.logprobs is None for node in trajectory.nodes)
    assert [node.sampled for node in trajectory.nodes] == [False, True, False, True]
    assert trajectory.drift == 0
