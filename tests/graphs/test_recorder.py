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


def counts(recorder: Recorder) -> tuple[int, int, int]:
    made = recorder.trajectory()
    return made.clean, made.realigned, made.drift


SPACE = st.text(alphabet=" \n\t\r", max_size=3)
KINDS = st.sampled_from(["same", "space", "words", "retokenised"])
TURNS = st.lists(st.tuples(KINDS, SPACE, SPACE), min_size=1, max_size=6)


@given(TURNS, st.integers(0, 10**6))
def test_each_continuation_is_clean_realigned_or_forked(
    turns: list[tuple[str, str, str]], seed: int
) -> None:
    """White space around a reply is put back with the sampled ids; other words, or other ids for
    the same words, fork. What the engine read and sampled is kept exactly in every case."""
    engine, recorder = Engine(seed), Recorder()
    history = [Message(role="user", content="u")]
    expected = [0, 0, 0]
    read: list[tuple[int, ...]] = []
    respelled = broken = False
    first = call(recorder, engine, history)
    read.append((first.prompt_ids or ()) + (first.completion_ids or ()))
    last = plain(first.message)
    for number, (kind, before, after) in enumerate(turns):
        keep_ids = True
        if kind == "space":
            last = replace(last, content=f"{before}{last.content}{after}")
            respelled = respelled or bool(before or after)
        elif kind == "words":
            last = replace(last, content=f"{last.content}!")
        keep_ids = kind != "retokenised"
        history += [last, Message(role="user", content=f"result {number}")]
        reply = call(recorder, engine, history, keep_ids=keep_ids)
        read.append((reply.prompt_ids or ()) + (reply.completion_ids or ()))
        # A rewritten reply forks once: what follows continues the fork. One that was re-tokenised
        # once is sent with its ids the next time, which no longer continues the re-tokenised one.
        if kind == "words" or not keep_ids or broken:
            expected[2] += 1
        else:
            expected[1 if respelled else 0] += 1
        broken = not keep_ids
        last = plain(reply.message)
        if broken:
            break
    assert list(counts(recorder)) == expected
    trajectory = recorder.trajectory()
    leaves = [at for at, node in enumerate(trajectory.nodes) if node.sampled]
    assert [ids(trajectory, leaf) for leaf in leaves] == read


def test_a_stripped_reply_is_sent_as_it_was_sampled() -> None:
    engine, recorder = Engine(0), Recorder()
    history = [Message(role="user", content="u")]
    first = call(recorder, engine, history)
    stripped = replace(plain(first.message), content=f"  {first.message.content}\n")
    history += [stripped, Message(role="user", content="more")]
    second = call(recorder, engine, history)
    assert counts(recorder) == (0, 1, 0)
    before = (first.prompt_ids or ()) + (first.completion_ids or ())
    assert (second.prompt_ids or ())[: len(before)] == before
    assert recorder.trajectory().nodes[1].message.content == first.message.content


def test_white_space_inside_a_reply_is_part_of_it() -> None:
    recorder = Recorder()
    for text, reply, ids in (("a", "x  y", (7,)), ("b", "x y", (8,))):
        completion = Completion(
            message=Message(role="assistant", content=reply), finish_reason="stop", usage=Usage(),
            model="m", prompt_ids=(ord(text),), completion_ids=ids, logprobs=(0.0,),
        )  # fmt: skip
        recorder.add(Request(messages=(Message(role="user", content=text),)), completion)
    prepared = recorder.prepare([Message(role="assistant", content=" x y ")])
    assert prepared[0].token_ids == (8,)


def test_a_new_conversation_and_a_second_sample_are_no_drift() -> None:
    engine, recorder = Engine(0), Recorder()
    example = [Message(role="user", content="q", name="example"),
               Message(role="assistant", content="a", name="example")]  # fmt: skip
    for text in ("one", "one", "two"):
        call(recorder, engine, [*example, Message(role="user", content=text)])
    assert counts(recorder) == (0, 0, 0)


def test_a_rewritten_reply_is_a_fork_even_when_its_words_are_new() -> None:
    engine, recorder = Engine(0), Recorder()
    history = [Message(role="user", content="u")]
    call(recorder, engine, history)
    summary = Message(role="assistant", content="in short")
    call(recorder, engine, [*history, summary, Message(role="user", content="go on")])
    assert counts(recorder) == (0, 0, 1)


def test_a_reply_with_a_new_system_text_is_a_fork() -> None:
    engine, recorder = Engine(0), Recorder()
    history = [Message(role="system", content="s"), Message(role="user", content="u")]
    first = call(recorder, engine, history)
    later = [Message(role="system", content="t"), history[1], plain(first.message), history[1]]
    call(recorder, engine, later)
    assert counts(recorder) == (0, 0, 1)


def test_without_ids_nothing_is_counted() -> None:
    recorder = Recorder()
    reply = Message(role="assistant", content="r")
    user = Message(role="user", content="u")
    for messages in ((user,), (user, reply, user)):
        completion = Completion(message=reply, finish_reason="stop", usage=Usage(), model="m")
        recorder.add(Request(messages=messages), completion)
    assert counts(recorder) == (0, 0, 0)
