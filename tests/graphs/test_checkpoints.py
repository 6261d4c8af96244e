"""Our checkpointer beside LangGraph's own one in memory, and what a file of it survives."""

from __future__ import annotations

import operator
import os
import random
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send

from agentloop.errors import StoreError, UsageError
from agentloop.graphs.checkpoint_file import ThreadFile
from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.trajectories.redact import Redactor

SECRET = "correct-horse-battery"


def address(name: str | None = None, *, thread: str = "t", ns: str = "") -> Any:
    inner = {"thread_id": thread, "checkpoint_ns": ns}
    return {"configurable": {**inner, **({"checkpoint_id": name} if name else {})}}


def checkpoint(number: int, values: dict[str, Any], versions: dict[str, Any]) -> Any:
    return {
        "v": 4, "id": str(uuid6(clock_seq=number)), "ts": f"2026-01-01T00:00:{number:02}",
        "channel_values": values, "channel_versions": versions,
        "versions_seen": {"node": {"messages": number}}, "updated_channels": sorted(values),
    }  # fmt: skip


def seen(saver: Any, config: Any) -> Any:
    """All that a saver says about a checkpoint, comparable between savers."""
    found = saver.get_tuple(config)
    if found is None:
        return None
    parent = found.parent_config and found.parent_config["configurable"]["checkpoint_id"]
    return found.checkpoint, found.metadata, parent, found.pending_writes


class Chat(TypedDict):
    messages: Annotated[list[dict[str, Any]], operator.add]
    n: int


def chat(steps: int, ran: list[int]) -> Any:
    """An agent that appends half a kilobyte at each of `steps` nodes and notes them in `ran`."""

    def node(state: Chat) -> Any:
        ran.append(state["n"])
        text = "".join(random.Random(state["n"]).choices("abcdefghij klmnop", k=470))
        return {"messages": [{"role": "assistant", "content": text}], "n": state["n"] + 1}

    builder: Any = StateGraph(Chat)
    builder.add_node("model", node).add_node("tools", node).add_edge(START, "model")
    builder.add_conditional_edges("model", lambda now: END if now["n"] >= steps else "tools")
    builder.add_conditional_edges("tools", lambda now: END if now["n"] >= steps else "model")
    return builder


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


_leaf = st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=5) | st.binary()
_value = st.recursive(
    _leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=6
)
_list = st.lists(st.dictionaries(st.text(max_size=3), _leaf, max_size=2) | _leaf, max_size=5)
_step = st.tuples(
    st.integers(0, 9),  # which earlier checkpoint is the parent, counted from the end
    st.dictionaries(st.sampled_from("abc"), _value, max_size=2),  # channels that are set
    st.one_of(st.none(), _list),  # what the conversation grows by; `None` shortens it
    st.sets(st.sampled_from("abc"), max_size=1),  # channels that go
    st.lists(st.tuples(st.sampled_from(["a", "__error__"]), _value), max_size=3),  # a task's writes
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_step, min_size=1, max_size=8), ns=st.sampled_from(["", "child:1"]))
def test_it_answers_as_the_saver_in_memory_does_before_and_after_it_is_opened_again(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, ns: str
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    ours, theirs = DeltaSaver(folder), InMemorySaver()
    known: list[tuple[str, dict[str, Any], dict[str, int]]] = []
    for number, (back, changed, grown, gone, writes) in enumerate(steps):
        parent = known[-1 - back % len(known)] if known else None
        values, versions = (dict(parent[1]), dict(parent[2])) if parent else ({}, {})
        old = values.get("messages", [])
        update = {**changed, "messages": old[:-1] if grown is None else [*old, *grown]}
        for channel in gone - set(changed):
            values.pop(channel, None), versions.pop(channel, None)
        new = dict.fromkeys(update, 100 + number)
        values, versions = {**values, **update}, {**versions, **new}
        one = checkpoint(number, values, versions)
        known.append((one["id"], values, versions))
        config = address(parent[0] if parent else None, ns=ns)
        for saver in (ours, theirs):
            stored = saver.put(config, dict(one), {"source": "loop", "step": number}, dict(new))
            saver.put_writes(stored, writes, f"task-{number % 2}", "path")
            saver.put_writes(stored, writes[:1], f"task-{number % 2}", "path")
    for saver in (ours, DeltaSaver(folder)):
        for config in [address(ns=ns), *(address(name, ns=ns) for name, _, _ in known)]:
            assert seen(saver, config) == seen(theirs, config)
        for wanted in ({}, {"limit": 2}, {"before": address(known[0][0])}, {"filter": {"step": 0}}):
            listed = [[one.checkpoint["id"] for one in any_.list(address(), **wanted)]
                      for any_ in (saver, theirs)]  # fmt: skip
            assert listed[0] == listed[1]


def test_a_step_costs_less_than_twice_what_it_says(tmp_path: Path) -> None:
    agent = chat(40, []).compile(checkpointer=DeltaSaver(tmp_path))
    state = agent.invoke({"messages": [], "n": 0}, {**address(), "recursion_limit": 50},
                         durability="sync")  # fmt: skip
    payload = sum(len(str(one).encode()) for one in state["messages"])
    assert size(tmp_path) <= 2 * payload


def test_a_run_goes_on_from_a_file_cut_at_any_byte(tmp_path: Path) -> None:
    ran: list[int] = []
    steps, config = 6, address()
    begun: list[int] = []  # bytes in the file when each step began
    saver = DeltaSaver(tmp_path)
    builder = chat(steps, ran)
    for part in builder.compile(checkpointer=saver).stream(
        {"messages": [], "n": 0}, config, durability="sync", stream_mode="debug"
    ):
        if part["type"] == "task":
            begun.append(size(tmp_path))
    final = saver.get_tuple(config)
    assert final is not None and ran == list(range(steps))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for at in [*range(0, len(whole), 301), *(b + d for b in begun for d in (-1, 0, 1)), len(whole)]:
        file.write_bytes(whole[:at])
        saver = DeltaSaver(tmp_path)
        agent = builder.compile(checkpointer=saver)
        ran.clear()
        fresh = saver.get_tuple(config) is None
        agent.invoke({"messages": [], "n": 0} if fresh else None, config, durability="sync")
        started = sum(bytes_ <= at for bytes_ in begun)
        assert started + len(ran) <= steps + 1, at
        after = DeltaSaver(tmp_path).get_tuple(config)
        assert after is not None
        assert after.checkpoint["channel_values"] == final.checkpoint["channel_values"]


def test_a_changed_byte_ends_the_history_and_never_changes_it(tmp_path: Path) -> None:
    chat(5, []).compile(checkpointer=DeltaSaver(tmp_path)).invoke(
        {"messages": [], "n": 0}, address()
    )
    (file,) = tmp_path.iterdir()
    before = {one.checkpoint["id"]: one for one in DeltaSaver(tmp_path).list(address())}
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        file.write_bytes(data)
        for one in DeltaSaver(tmp_path).list(address()):
            assert one.checkpoint == before[one.checkpoint["id"]].checkpoint


def test_zeros_that_a_power_cut_leaves_are_not_read(tmp_path: Path) -> None:
    config = DeltaSaver(tmp_path).put(address(), checkpoint(1, {"a": 1}, {"a": 1}), {}, {"a": 1})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + bytes(4096))
    saver = DeltaSaver(tmp_path)
    second = saver.put(config, checkpoint(2, {"a": 2}, {"a": 2}), {}, {"a": 2})
    found = DeltaSaver(tmp_path).get_tuple(second)
    assert found is not None and found.checkpoint["channel_values"] == {"a": 2}


def test_two_savers_take_turns_on_one_thread(tmp_path: Path) -> None:
    savers: Sequence[DeltaSaver] = (DeltaSaver(tmp_path), DeltaSaver(tmp_path))
    config, said = address(), []
    for number in range(10):
        said = [*said, {"content": f"message {number}"}]
        versions = {"messages": number}
        one = checkpoint(number, {"messages": said}, versions)
        config = savers[number % 2].put(config, one, {}, versions)
    for saver in (*savers, DeltaSaver(tmp_path)):
        found = saver.get_tuple(address())
        assert found is not None and found.checkpoint["channel_values"]["messages"] == said


def test_many_threads_write_at_once(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path)
    agent = chat(12, []).compile(checkpointer=saver)

    def run(name: int) -> None:
        agent.invoke({"messages": [], "n": 0}, address(thread=f"thread-{name}"))

    workers = [threading.Thread(target=run, args=(name,)) for name in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name in range(12):
        found = DeltaSaver(tmp_path).get_tuple(address(thread=f"thread-{name}"))
        assert found is not None and len(found.checkpoint["channel_values"]["messages"]) == 12


def test_no_secret_reaches_the_disk(tmp_path: Path) -> None:
    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]
        data: dict[str, Any]

    saver = DeltaSaver(tmp_path, redact=Redactor({"MY_KEY": SECRET}))
    builder: Any = StateGraph(State)
    builder.add_node("node", lambda state: {
        "messages": [AIMessage(f"it is {SECRET}", additional_kwargs={"deep": [{"er": SECRET}]})],
        "data": {"key": f"a {SECRET}", SECRET: 1, "raw": SECRET.encode(), "tuple": (SECRET,)},
    })  # fmt: skip
    builder.add_edge(START, "node").add_edge("node", END)
    config = {**address(), "metadata": {"about": SECRET}}
    state = builder.compile(checkpointer=saver).invoke(
        {"messages": [HumanMessage(f"remember {SECRET}")], "data": {}}, config
    )
    assert SECRET in state["messages"][1].content  # the run itself is left alone
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    found = DeltaSaver(tmp_path).get_tuple(address())
    assert found is not None
    human, ai = found.checkpoint["channel_values"]["messages"]
    assert isinstance(human, HumanMessage) and isinstance(ai, AIMessage)
    assert ai.content == "it is [redacted:MY_KEY]"
    assert found.metadata["about"] == "[redacted:MY_KEY]"  # type: ignore[typeddict-item]


@pytest.mark.parametrize("size", [47, 48, 57, 65, 90, 97, 122, 256 + 48, 256 + 122])
def test_a_key_is_found_where_its_length_looks_like_a_letter_before_it(
    tmp_path: Path, size: int
) -> None:
    """`0` to `9`, `A` to `Z` and `a` to `z` are the bytes 48 to 57, 65 to 90 and 97 to 122."""
    letters = "U1KGUrZ4Yndn739FhQ3AaqEjlY2AN5iyasxSGoed"
    key = "sk-proj-" + (letters * 10)[: size - 8]
    thread = ThreadFile(tmp_path / "thread", "t", Redactor({}))
    for value in (key, [key], {"text": key}, key.encode()):
        with thread.writing():
            thread.add_note(value)
    assert b"sk-proj" not in (tmp_path / "thread").read_bytes()
    assert "sk-proj" not in repr(thread.notes) and len(thread.notes) == 4


def test_a_secret_that_only_its_key_tells_does_not_reach_the_disk(tmp_path: Path) -> None:
    """As in the log: what stands under `password` is one if it looks chosen at random."""
    secret, raw = b"q7R2k9Wx4T", b"q7R2k9Wx4T-raw"
    names = ("password", "token", "pwd", "cookie", "api_key", "Authorization")
    call = {"name": "login", "args": {"user": "anna", "dbPassword": secret.decode()}, "id": "1"}
    values = {
        "messages": [AIMessage("", tool_calls=[call]), HumanMessage("no")],
        "config": {"token": "CancellationToken", "password": (secret.decode(), raw), "n": 1},
    }
    for name in names:
        text = f"sid={secret.decode()}" if name == "cookie" else f"{secret.decode()}b3N8m5Zc"
        folder = tmp_path / name
        saver = DeltaSaver(folder, redact=Redactor({}))
        saver.put(address(), checkpoint(1, {"x": {name: text}}, {"x": 1}), {}, {"x": 1})
        assert all(secret not in file.read_bytes() for file in folder.iterdir()), name
    saver = DeltaSaver(tmp_path / "all", redact=Redactor({}))
    saver.put(address(), checkpoint(1, values, dict.fromkeys(values, 1)), {}, {})
    assert all(secret not in file.read_bytes() for file in (tmp_path / "all").iterdir())
    found = saver.get_tuple(address())
    assert found is not None
    kept = found.checkpoint["channel_values"]
    args = {"user": "anna", "dbPassword": "[redacted:secret]"}
    assert kept["messages"][0].tool_calls[0]["args"] == args
    mark = "[redacted:secret]"
    assert kept["config"] == {
        "token": "CancellationToken",
        "password": [mark, mark.encode()],
        "n": 1,
    }


@settings(deadline=None, max_examples=50)
@given(st.integers(-(10**40), 10**40), st.integers(-(2**65), 2**65))
def test_integers_of_any_size_are_kept(
    tmp_path_factory: pytest.TempPathFactory, one: int, two: int
) -> None:
    call = {"name": "power", "args": {"n": one}, "id": "1"}
    values = {
        "n": one, "deep": {"a": [two, {"b": one}], "small": 3, "yes": True}, "list": [one, 1, two],
        "messages": [HumanMessage("2 ** 70?"), AIMessage("", tool_calls=[call])],
        "send": [Send("node", {"n": two})],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoints")
    saver = DeltaSaver(folder, redact=Redactor({"KEY": SECRET}))
    config = saver.put(address(), checkpoint(1, values, dict.fromkeys(values, 1)), {}, {})
    saver.put_writes(config, [("n", one), ("deep", values["deep"])], "task")
    for again in (saver, DeltaSaver(folder)):
        found = again.get_tuple(address())
        assert found is not None and found.checkpoint["channel_values"] == values
        assert type(found.checkpoint["channel_values"]["n"]) is int
        assert [write[2] for write in found.pending_writes or []] == [one, values["deep"]]


def test_what_cannot_be_kept_is_said_in_a_sentence(tmp_path: Path) -> None:
    for value in (object(), {2**70}, {"deep": [open]}, 10**5000):
        saver = DeltaSaver(tmp_path)
        with pytest.raises(UsageError, match=r"state of the graph cannot be stored: .*; keep"):
            saver.put(address(), checkpoint(1, {"a": value}, {"a": 1}), {}, {"a": 1})


def test_a_dictionary_changed_in_place_is_stored_as_it_is(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path)
    said = [{"content": "one"}]
    first = saver.put(address(), checkpoint(1, {"m": said}, {"m": 1}), {}, {"m": 1})
    said[0]["content"] = "another"
    second = saver.put(first, checkpoint(2, {"m": said}, {"m": 2}), {}, {"m": 2})
    for config, expected in ((first, "one"), (second, "another")):
        found = saver.get_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"]["m"] == [{"content": expected}]


def test_a_full_disk_is_an_error_and_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path)
    first = saver.put(address(), checkpoint(1, {"a": "kept"}, {"a": 1}), {}, {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size(tmp_path) + 100, hard))
    try:
        with pytest.raises(StoreError, match="cannot"):
            saver.put(first, checkpoint(2, {"a": "x" * 5000}, {"a": 2}), {}, {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for again in (saver, DeltaSaver(tmp_path)):
        found = again.get_tuple(address())
        assert found is not None and found.checkpoint["channel_values"] == {"a": "kept"}
        second = again.put(first, checkpoint(3, {"a": "more"}, {"a": 3}), {}, {"a": 3})
        assert again.get_tuple(second) is not None
        again.delete_thread("t")
        first = again.put(address(), checkpoint(1, {"a": "kept"}, {"a": 1}), {}, {"a": 1})


def test_a_message_that_takes_the_place_of_another_is_stored(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path)
    said = [HumanMessage("one", id="1"), AIMessage("two", id="2")]
    first = saver.put(address(), checkpoint(1, {"m": said}, {"m": 1}), {}, {"m": 1})
    new = [HumanMessage("other", id="1"), said[1], AIMessage("three", id="3")]
    second = saver.put(first, checkpoint(2, {"m": new}, {"m": 2}), {}, {"m": 2})
    for config, expected in ((first, said), (second, new)):
        found = saver.get_tuple(config)
        assert found is not None and found.checkpoint["channel_values"]["m"] == expected


def test_a_format_of_a_later_release_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("agentloop.graphs.checkpoint_file.FORMAT", 99)
    DeltaSaver(tmp_path).put(address(), checkpoint(1, {}, {}), {}, {})
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        DeltaSaver(tmp_path).get_tuple(address())


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    DeltaSaver(tmp_path / "checkpoints").put(address(), checkpoint(1, {}, {}), {}, {})
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert os.stat(file).st_mode & 0o77 == 0
