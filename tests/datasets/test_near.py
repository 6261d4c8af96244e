"""What is nearest is the same however the search finds it; duplicates in meaning are one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from dataset_fixtures import episode, replies
from pydantic import ValidationError

from agentloop.datasets import near as module
from agentloop.datasets.near import Dedupe, Near, embedded, unlike
from agentloop.errors import UsageError
from agentloop.records import Episode, Skill


@dataclass
class Axes:
    """A fixed random direction per text, `calls` counted by text."""

    seen: list[str] = field(default_factory=list)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.seen += texts
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=8) for t in texts]
        return [list(map(float, row / np.linalg.norm(row))) for row in rows]


@dataclass
class Rough:
    """A search as an index may be: single precision, ties in any order, the far end thinned."""

    episodes: Sequence[Episode]
    seed: int
    thin: float = 0.3
    asked: list[int] = field(default_factory=list)

    def __call__(self, kind: str, text: str, k: int) -> list[tuple[str, float]]:
        assert kind == "episode"
        self.asked.append(k)
        chance = random.Random(self.seed)
        vectors = embedded([text, *(one.task.prompt for one in self.episodes)], Axes())
        distances = (1 - vectors[1:] @ vectors[0]).astype(np.float32)
        hits = [
            (float(distance) + chance.uniform(-1e-6, 1e-6), one.id)
            for one, distance in zip(self.episodes, distances, strict=True)
        ]
        best = sorted(hits)[:k]
        sure = k // 2
        kept = best[:sure] + [hit for hit in best[sure:] if chance.random() > self.thin]
        filled = kept + sorted(hits)[k:][: len(best) - len(kept)]
        return [(name, distance) for distance, name in filled]


def many(tasks: int, samples: int) -> list[Episode]:
    return [
        episode(f"ep-{task}-{sample}", 1.0, task=f"t{task}", prompt=f"text {task}")
        for task in range(tasks)
        for sample in range(samples)
    ]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure few and ask for few at first, so that a small set needs the search."""
    monkeypatch.setattr(module, "_MEASURED", 2)
    monkeypatch.setattr(module, "_LEAST", 20)
    monkeypatch.setattr(module, "_OVER", 4)


def exact(episodes: Sequence[Episode], text: str, k: int) -> dict[str, float]:
    vectors = embedded([text, *(one.task.prompt for one in episodes)], Axes())
    cosines = np.round(vectors[1:] @ vectors[0], 6)
    ranked = sorted(zip(-cosines, (one.id for one in episodes), strict=True))
    return {name: -value for value, name in ranked[:k]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 10, 25, 60])
def test_a_rough_search_gives_what_measuring_all_would(seed: int, k: int) -> None:
    episodes = many(100, 3)  # every prompt three times: ties at most cuts
    search = Rough(episodes, seed)
    found = Near(text="text", k=k).choose(episodes, search, Axes())
    assert found == pytest.approx(exact(episodes, "text", k))
    assert list(found) == [one.id for one in episodes if one.id in found]
    assert len(found) == k
    assert search.asked


def test_ties_wider_than_the_search_are_cut_by_name() -> None:
    episodes = many(3, 60)
    found = Near(text="text", k=10).choose(episodes, Rough(episodes, 1), Axes())
    best = next(iter(exact(episodes, "text", 1))).rsplit("-", 1)[0]
    assert set(found) == set(sorted(one.id for one in episodes if one.id.startswith(best))[:10])


def test_only_what_is_given_is_chosen_though_the_search_knows_more() -> None:
    known = many(200, 1)
    given = known[::7]
    search = Rough(known, 0)
    found = Near(text="text", k=5).choose(given, search, Axes())
    assert found == pytest.approx(exact(given, "text", 5))


def test_few_are_measured_when_the_search_is_narrower_than_what_is_given() -> None:
    episodes, embedder = many(400, 1), Axes()
    Near(text="text", k=5).choose(episodes, Rough(episodes, 0), embedder)
    assert len(embedder.seen) <= 21


def test_what_can_be_measured_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEASURED", 100)
    episodes, blind = many(100, 3), Rough([], 0)
    found = Near(text="text", k=25).choose(episodes, blind, Axes())
    assert found == pytest.approx(exact(episodes, "text", 25))
    assert blind.asked == []


def test_fewer_than_k_are_all() -> None:
    episodes = many(4, 1)
    found = Near(text="text", k=9).choose(episodes, Rough(episodes, 0), Axes())
    assert set(found) == {one.id for one in episodes}
    assert Near(text="text", k=9).choose([], Rough([], 0), Axes()) == {}


def test_tasks_keep_all_their_samples() -> None:
    episodes = many(50, 4)
    found = Near(text="text", k=3, of="tasks").choose(episodes, Rough(episodes, 2), Axes())
    assert len(found) == 12
    best = exact(episodes, "text", 12)
    assert set(found) == set(best)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_near_skills_are_measured_among_those_that_were_shown(k: int) -> None:
    skills = {
        f"s{at}": Skill(name=f"skill-{at % 4}", description="what it does", document="")
        for at in range(40)  # ten times the same text: ties at most cuts
    }
    shown = [replace(episode(f"e{at}"), skills=(f"s{at}", f"s{at + 1}")) for at in range(0, 20, 5)]
    blind = Rough([], 0)  # an index that never found a skill, of a store that has more of them
    found = Near(text="sums", k=k, of="skills").choose(
        [*shown, episode("none")], blind, Axes(), skill=skills.__getitem__
    )
    names = sorted({name for one in shown for name in one.skills})
    texts = [f"{skills[name].name}\n{skills[name].description}" for name in names]
    vectors = embedded(["sums", *texts], Axes())
    cosines = np.round(vectors[1:] @ vectors[0], 6)
    best = dict(sorted(zip(names, cosines, strict=True), key=lambda one: (-one[1], one[0]))[:k])
    assert found == pytest.approx(
        {one.id: max(best[name] for name in one.skills if name in best)
         for one in shown if best.keys() & set(one.skills)}
    )  # fmt: skip
    assert blind.asked == []


def test_near_skills_needs_the_skills() -> None:
    with pytest.raises(UsageError, match="needs the skills"):
        Near(text="sums", k=2, of="skills").choose([episode("a")], Rough([], 0), Axes())


def test_one_of_those_that_mean_the_same_is_kept() -> None:
    texts = {"a": "one", "b": "two", "c": "one", "d": "one"}
    assert unlike(texts, Axes(), above=1.0) == {"a", "b"}
    vectors = embedded(list(texts.values()), Axes())
    between = float(vectors[0] @ vectors[1])
    assert unlike(texts, Axes(), above=between - 0.01) == {"a"}
    assert unlike(texts, Axes(), above=between + 0.01) == {"a", "b"}


def test_blocks_do_not_change_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {f"n{at}": f"text {at % 60}" for at in range(150)}
    whole = unlike(texts, Axes(), above=0.6)
    vectors, kept = embedded(list(texts.values()), Axes()), list[int]()
    for at in range(len(texts)):
        if all(vectors[at] @ vectors[other] < 0.6 for other in kept):
            kept.append(at)
    assert whole == {f"n{at}" for at in kept}
    for size in (1, 7, 64):
        monkeypatch.setattr(module, "_BLOCK", size)
        assert unlike(texts, Axes(), above=0.6) == whole


def test_the_better_reply_is_kept_and_tasks_stay_whole() -> None:
    same = [episode("a", 0.6, replies("x")), episode("b", 0.9, replies("x")),
            episode("c", 0.9, replies("x"))]  # fmt: skip
    assert Dedupe().choose(same, Axes()) == {"b"}
    tasks = [*many(2, 2), episode("late", task="u", prompt="text 0")]
    kept = Dedupe(of="tasks").choose(tasks, Axes())
    assert kept == {"ep-0-0", "ep-0-1", "ep-1-0", "ep-1-1"}


def test_senseless_settings_are_refused() -> None:
    for bad in ({"text": ""}, {"k": 0}, {"of": "families"}):
        with pytest.raises(ValidationError):
            Near(**{"text": "t", "k": 1, **bad})  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Dedupe(above=1.5)

    class Short:
        def embed(self, texts: Sequence[str]) -> list[list[float]]:
            return [[1.0]]

    with pytest.raises(UsageError, match="1 vectors for 2 texts"):
        embedded(["a", "b"], Short())
