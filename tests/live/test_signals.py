"""What counts for a canary and what does not, and that it counts the same whenever one looks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.gates.live import Side, judge
from agentloop.live import canary
from agentloop.live.conversations import conversation_of, new_name, task_of, unit
from agentloop.live.signals import FEEDBACK, LIVE, Canary, Signals
from agentloop.records import (
    Bundle,
    Episode,
    Failure,
    Limits,
    Message,
    Reason,
    Sampling,
    Score,
    Setup,
    Task,
    attempt_of,
)
from agentloop.store.archive import Archive
from agentloop.store.exchange import export, load
from agentloop.store.query import Draft, Query
from agentloop.trajectories.codec import to_json
from agentloop.workflows.schema import Serve

PATIENCE = 100.0


def setup(subject: str, **more: Any) -> Setup:
    """What a rollout of nothing in particular ran with."""
    return Setup(
        graph="g", shape="s", tools={}, system="", sampling=Sampling(), limits=Limits(),
        subject=subject, **more,
    )  # fmt: skip


@dataclass
class Book:
    """A log that is written by hand; every row has a key and a time of its own."""

    archive: Archive
    champion: str
    bundle: str
    rows: int = 0

    def turn(
        self, conversation: str, side: str = "champion", *, turn: int = 1, at: float = 0.0,
        **more: Any,
    ) -> str:  # fmt: skip
        """A logged turn of a conversation; its episode."""
        draft = self.episode(conversation, side, turn=turn, at=at, **more)
        self.archive.log.append([draft])
        return draft.key

    def episode(
        self, conversation: str, side: str = "champion", *, turn: int = 1, at: float = 0.0,
        **more: Any,
    ) -> Draft:  # fmt: skip
        """The row of a turn."""
        data: Any = {"champion": self.champion, "canary": self.bundle}
        bundle = {"champion": self.champion, "canary": self.bundle}.get(side, side)
        self.rows += 1
        made = Episode(
            id=f"ep-{self.rows:016x}", bundle=bundle, purpose="serve", run="run-own", seed=0,
            task=Task(id=task_of(conversation, turn), prompt="?", data=data),
        )  # fmt: skip
        made = replace(made, **{"setup": setup(made.id), **more})
        made = replace(made, id=attempt_of(made).id)  # else no other home would take it
        return Draft(kind="episode", key=made.id, body=to_json(made), scope="w", at=at)

    def score(self, episode: str, value: float, *, spec: str = FEEDBACK, at: float = 0.0) -> Draft:
        """The row of a score."""
        self.rows += 1
        score = Score(value=value, success=value >= 1, source=spec)
        body: Any = {"episode": episode, "spec": spec, "score": to_json(score)}
        key = f"{episode}/{spec}/{self.rows}"
        return Draft(kind="score", key=key, body=body, scope="w", at=at)

    def say(self, episode: str, value: float, *, spec: str = FEEDBACK, at: float = 0.0) -> None:
        """Append a score."""
        self.archive.log.append([self.score(episode, value, spec=spec, at=at)])

    @property
    def running(self) -> Canary:
        found = canary.running(self.archive, "w")
        assert found is not None
        return found

    def signals(self) -> list[tuple[Side, float]]:
        """As one who looks for the first time."""
        return list(Signals(self.archive, "w", PATIENCE).of(self.running))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    with opened(tmp_path / "home") as archive:
        yield new_book(archive)


def opened(home: Path) -> Archive:
    home.mkdir()
    return Archive(home)


def new_book(archive: Archive) -> Book:
    champion, bundle = (archive.put(Bundle(instruction=text)) for text in ("old", "new"))
    archive.point("w/champion", champion, reason="test", scope="w")
    canary.begin(archive, "w", bundle, reason="test")
    return Book(archive, champion, bundle)


def test_a_conversation_counts_once_with_the_first_that_settles(book: Book) -> None:
    turns = [book.turn("a", turn=turn) for turn in (1, 2, 3)]
    book.say(turns[1], 0.5)
    for episode in turns:
        book.say(episode, 1.0)
    book.say(book.turn("b", "canary"), 0.25)
    assert book.signals() == [("champion", 0.5), ("canary", 0.25)]


def test_feedback_counts_at_once_and_a_live_reward_when_none_came(book: Book) -> None:
    first, second, third = (book.turn(name, "canary", at=0.0) for name in "abc")
    book.say(first, 0.1, spec=LIVE, at=10.0)
    book.say(second, 0.2, spec=LIVE, at=20.0)
    book.say(second, 0.3, at=119.0)  # within its time, and after the first one's
    assert book.signals() == [("canary", 0.1), ("canary", 0.3)]
    book.say(third, 0.4, spec=LIVE, at=130.0)
    book.say(third, 0.5, at=231.0)  # too late
    book.say(first, 0.6, at=231.0)
    assert book.signals() == [("canary", 0.1), ("canary", 0.3), ("canary", 0.4)]
    book.say(book.turn("d", at=300.0), 0.7, spec="another", at=300.0)
    assert len(book.signals()) == 3


def test_feedback_has_its_time_also_when_the_clock_is_set_back(book: Book) -> None:
    episode = book.turn("a", "canary", at=1000.0)
    book.say(episode, 0.1, spec=LIVE, at=0.0)
    book.turn("b", at=1050.0)
    assert book.signals() == []
    book.say(episode, 0.9, at=1060.0)
    assert book.signals() == [("canary", 0.9)]


def test_feedback_for_an_open_conversation_settles_it_when_it_is_logged(book: Book) -> None:
    late = book.episode("a")
    book.say(late.key, 0.2)
    book.say(book.turn("b", "canary"), 0.3)
    assert book.signals() == [("canary", 0.3)]
    book.archive.log.append([late])
    book.say(late.key, 0.9)
    assert book.signals() == [("canary", 0.3), ("champion", 0.2)]


@pytest.mark.parametrize(
    ("reason", "counts"),
    [("model_error", True), ("time_limit", True), ("turn_limit", True), ("graph_error", True),
     ("cancelled", False), ("budget", False)],
)  # fmt: skip
def test_a_failure_is_a_zero_unless_it_says_nothing_of_the_bundle(
    book: Book, reason: Reason, counts: bool
) -> None:
    book.turn("a", "canary", failure=Failure(reason=reason, detail="x"))
    book.turn("b")  # answered, and nobody said a word
    assert book.signals() == ([("canary", 0.0)] if counts else [])


def test_only_conversations_that_could_have_got_either_count(book: Book) -> None:
    other = book.archive.put(Bundle(instruction="another"))
    before = Task(id=task_of("a", 2), prompt="?")
    earlier = replace(before, data={"champion": other, "canary": book.bundle})
    wrong: list[dict[str, Any]] = [
        {"task": before}, {"task": earlier}, {"side": other}, {"setup": setup("x", parent="ep-1")},
        {"purpose": "eval"},
    ]  # fmt: skip
    for number, more in enumerate(wrong):
        book.say(book.turn(f"c{number}", **more), 1.0)
    assert book.signals() == []
    book.say(book.turn("d"), 1.0)
    assert book.signals() == [("champion", 1.0)]


def test_a_canary_that_begins_again_begins_with_nothing(book: Book) -> None:
    episode = book.turn("a", "canary")
    book.say(episode, 1.0)
    signals = Signals(book.archive, "w", PATIENCE)
    assert signals.of(book.running) == [("canary", 1.0)]
    book.archive.retire("w/canary", reason="test")
    canary.begin(book.archive, "w", book.bundle, reason="test")
    assert signals.of(book.running) == []


def test_an_imported_file_decides_nothing(book: Book, tmp_path: Path) -> None:
    """It may name this home's workflow and bundles, and have happened in the far future."""
    pending = book.turn("own", "canary")
    book.say(pending, 0.5, spec=LIVE)
    with opened(tmp_path / "theirs") as archive:
        theirs = replace(new_book(archive), rows=1000)
        for number in range(40):
            side = "canary" if number % 2 else "champion"
            episode = theirs.turn(f"x{number}", side, run="run-theirs", at=1e10)
            theirs.say(episode, float(number % 2), at=1e10)
        export(archive.log, tmp_path / "their.jsonl")
    done = load(book.archive.log, tmp_path / "their.jsonl")
    assert done.new >= 80
    assert book.signals() == []
    assert canary.decide(book.archive, "w", Serve(patience=PATIENCE)) is None


def rows(
    book: Book, seed: int, n: int, gain: Callable[[str], float] = lambda side: 0.0
) -> list[Draft]:
    """Conversations of eight turns, ten at a time, each with one reward for all that is said in it:
    turns of one are as alike as can be."""
    chance, found = random.Random(seed), list[Draft]()
    sides = ["canary" if chance.random() < 0.3 else "champion" for _ in range(n)]
    values = [float(chance.random() < 0.5 + gain(side)) for side in sides]
    for first in range(0, n, 10):
        for turn in range(1, 9):
            for number in range(first, min(n, first + 10)):
                episode = book.episode(f"{seed}-{number}", sides[number], turn=turn)
                found += [episode, book.score(episode.key, values[number])]
    return found


def test_equal_bundles_are_seldom_promoted_however_alike_the_turns_are(tmp_path: Path) -> None:
    promoted = better = 0
    for seed in range(20):
        with opened(tmp_path / str(seed)) as archive:
            book = new_book(archive)
            archive.log.append(rows(book, seed, 60))
            promoted += judge(book.signals()).action == "promote"
    assert promoted <= 3  # 97.5 % limit of 0.05 of 20
    for seed in range(4):
        with opened(tmp_path / f"better {seed}") as archive:
            book = new_book(archive)
            archive.log.append(rows(book, seed, 120, lambda side: 0.45 * (side == "canary")))
            better += judge(book.signals()).action == "promote"
    assert better >= 3


Event = tuple[str, int, float]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["turn", "failed", "early", FEEDBACK, LIVE, LIVE]), st.integers(0, 7),
        st.sampled_from([-500.0, 0.0, 1.0, 60.0, 150.0]),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


def drafts(book: Book, events: Sequence[Event]) -> Iterator[Draft]:
    """Turns and what is said of them, in any order and with a clock that goes back."""
    now, coming, there = 1000.0, dict[int, Draft](), dict[int, Draft]()
    for number, (what, who, step) in enumerate(events):
        now += step
        side = "canary" if who % 2 else "champion"
        failed = Failure(reason="model_error", detail="x") if what == "failed" else None
        made = book.episode(f"c{who // 2}", side, turn=number, at=now, failure=failed)
        if what == "early":
            coming[who] = made
            yield book.score(made.key, number / 100, at=now)
        elif what in ("turn", "failed"):
            there[who] = coming.pop(who, made)
            yield there[who]
        elif who in there:
            yield book.score(there[who].key, number / 100, spec=what, at=now)


@settings(max_examples=30)
@given(EVENTS)
def test_what_was_counted_never_changes(tmp_path_factory: Any, events: list[Event]) -> None:
    with Archive(tmp_path_factory.mktemp("home")) as archive:
        book = new_book(archive)
        looks, seen = Signals(archive, "w", PATIENCE), list[tuple[Side, float]]()
        for draft in drafts(book, events):
            archive.log.append([draft])
            found = list(looks.of(book.running))
            assert found[: len(seen)] == seen
            assert found == book.signals(), "who looks for the first time sees the same"
            seen = found
        assert len(seen) <= 4


def test_a_look_reads_only_what_came_since(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = book.archive.log.read, list[int]()

    def noted(query: Query = Query()) -> Iterator[Any]:
        for entry in read(query):
            seen.append(entry.seq)
            yield entry

    monkeypatch.setattr(book.archive.log, "read", noted)
    book.archive.log.append(rows(book, 0, 30))
    signals = Signals(book.archive, "w", PATIENCE)
    first = len(signals.of(book.running))
    assert len(seen) > 100
    del seen[:]
    assert len(signals.of(book.running)) == first and len(seen) <= 1
    book.say(book.turn("new"), 1.0)
    del seen[:]
    assert len(signals.of(book.running)) == first + 1 and len(seen) <= 3


def test_a_conversation_is_known_by_its_name_or_by_how_it_begins() -> None:
    hello, reply = Message(role="user", content="hi"), Message(role="assistant", content="ho")
    one, two = (new_name((hello,), now) for now in (3600.0, 7199.0))
    assert one != two and unit(one) == unit(two)
    assert unit(new_name((hello, reply, hello), 3600.0)) == unit(one)
    assert unit(new_name((hello,), 7200.0)) != unit(one)
    assert unit(new_name((reply,), 3600.0)) != unit(one)
    for name in ("conversation:a/b.c/1", "session:x.y", one):
        assert conversation_of(task_of(name, 7)) == name
    assert unit("session:x.y") == "session:x.y"
