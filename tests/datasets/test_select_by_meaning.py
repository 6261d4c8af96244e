"""Selection by meaning over a real store: it finds a planted cluster, and the same one again.

The small test runs on what the store keeps in memory, the large one on 10,500 trajectories in
Chroma, before and after the index is built again, measured and (as beyond 50,000) proposed by it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_fixtures import episode, replies

from agentloop.datasets import near as module
from agentloop.datasets.credit import GroupCredit
from agentloop.datasets.filters import Chosen, Filters, Lent
from agentloop.datasets.makers import RLRows
from agentloop.datasets.manifest import dataset_id, load_rows, read_frozen, rows_path
from agentloop.datasets.near import Near
from agentloop.datasets.recipe import Recipe
from agentloop.records import Episode, Score
from agentloop.store.archive import Archive
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.store.query import Query
from agentloop.trajectories.rows_file import lines_of

PLANTED = (
    "A loaf for {n} guests takes {m} cups of flour; how many cups for {k} guests?",
    "My grandmother's cake recipe wants {m} spoons of sugar and {n} eggs. I have {k} eggs.",
    "Scale this recipe: {m} g butter, {n} g flour, {k} ml milk, for twice as many people.",
    "The oven bakes {n} biscuits in {m} minutes. How long do {k} biscuits take?",
    "How much yeast do I need for {k} kg of dough if {n} kg take {m} g?",
)
OTHERS = (
    "What is {n} + {m} - {k}?",
    "Sort these numbers from small to large: {n}, {m}, {k}.",
    "A train leaves at {n} o'clock and travels {m} km at {k} km/h. When does it arrive?",
    "A shop sells {n} bags of flour at {m} cents and {k} bags of rice. What does it earn?",
    "Write a function that reverses a list of length {n} in blocks of {m}, {k} times.",
    "Which planet number {n} has {m} moons and {k} rings?",
    "Count the letters in the words that follow: north {n} west {m} south {k}.",
    "The restaurant has {n} tables with {m} seats each and {k} guests. How many seats are free?",
    "Translate the sentence number {n} of chapter {m} on page {k} into French.",
    "In a chess tournament of {n} players with {m} rounds, how often does player {k} play?",
)
NEAR = "baking: how much of each ingredient does a recipe need for another number of people"


def planted(size: int, cluster: int) -> list[Episode]:
    """Groups of two samples with other prompts; `cluster` episodes of them are about baking."""
    chance = random.Random(7)
    found = []
    for at in range(size):
        inside = at < cluster
        template = (PLANTED if inside else OTHERS)[(at // 2) % (5 if inside else 10)]
        if at % 2 == 0:
            n, m, k = (chance.randrange(2, 10_000) for _ in range(3))
        name = f"ep-{chance.randrange(16**8):08x}-{'in' if inside else 'out'}"
        found.append(
            episode(
                name, float(at % 2), replies(f"reply {at}"), task=f"task-{at // 2}",
                prompt=template.format(n=n, m=m, k=k), started=float(at),
            )
        )  # fmt: skip
    chance.shuffle(found)
    return found


def store(archive: Archive, episodes: list[Episode]) -> None:
    async def write() -> None:
        for at in range(0, len(episodes), 1000):
            part = episodes[at : at + 1000]
            await archive.add_episodes([replace(one, score=None) for one in part], scope="w")
            scores = [(one.id, one.score) for one in part if one.score is not None]
            await archive.add_scores(scores, "reward", scope="w")

    asyncio.run(write())


def choose(archive: Archive, filters: Filters) -> Chosen:
    lent = Lent(search=archive.search, embedder=WordLlamaEmbedder())
    return filters.choose(archive.episodes(Query(purpose="collect")), lent)


def precision(chosen: Chosen) -> float:
    return sum(one.id.endswith("-in") for one in chosen.episodes) / len(chosen.episodes)


def exactly(episodes: list[Episode], k: int) -> set[str]:
    """What measuring every episode gives."""
    embedder = WordLlamaEmbedder()
    vectors = module.embedded([NEAR, *(one.task.prompt for one in episodes)], embedder)
    cosines = (vectors[1:] @ vectors[0]).round(6)
    ranked = sorted(zip(-cosines, (one.id for one in episodes), strict=True))
    return {name for _, name in ranked[:k]}


def test_a_planted_cluster_is_found_in_a_small_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST", 100)  # so that the search has something to leave out
    episodes = planted(500, 40)
    with Archive(tmp_path) as archive:
        store(archive, episodes)
        for measured in (50_000, 0):
            monkeypatch.setattr(module, "_MEASURED", measured)
            chosen = choose(archive, Filters(near=Near(text=NEAR, k=20)))
            assert precision(chosen) >= 0.9
            assert {one.id for one in chosen.episodes} == exactly(episodes, 20)


@pytest.mark.integration
@pytest.mark.timeout(400)  # two builds of an index of 10,500
def test_ten_thousand_trajectories_then_a_new_index_then_late_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = planted(10_500, 160)
    recipe = Recipe(
        select=Filters(mixed_groups=True, near=Near(text=NEAR, k=100)),
        rows=RLRows(),
        credit=GroupCredit(baseline="leave_one_out"),
    )
    with Archive(tmp_path) as archive:
        store(archive, episodes)
        assert archive.reindex() == 10_500  # all of it goes to Chroma
        lent = Lent(search=archive.search, embedder=WordLlamaEmbedder())
        built = recipe.build(archive.episodes(Query(purpose="collect")), lent)
        dataset = recipe.freeze(built, tmp_path / "datasets")
    print(f"precision@100 = {precision(built.chosen):.2f}")
    assert precision(built.chosen) >= 0.9
    assert {one.id for one in built.chosen.episodes} == exactly(episodes, 100)
    directory = tmp_path / "datasets" / dataset_id(dataset)
    _, kept = read_frozen(directory)
    assert {one.id: one.nearness for one in kept if one.chosen} == built.chosen.nearness
    assert {one.id: one.score for one in kept} == {
        one.id: one.score for one in built.chosen.members
    }
    with Archive(tmp_path) as archive:
        assert archive.reindex() >= 10_500
        again = choose(archive, recipe.select)
        assert [one.id for one in again.episodes] == [one.id for one in built.chosen.episodes]
        assert again.nearness == built.chosen.nearness
        with monkeypatch.context() as context:
            context.setattr(module, "_MEASURED", 0)
            proposed = choose(archive, recipe.select)
        print(f"proposed by the index: precision@100 = {precision(proposed):.2f}")
        assert precision(proposed) >= 0.9
        late = [(one.id, Score(value=0.5, success=False, source="late")) for one in episodes[:5000]]
        asyncio.run(archive.add_scores(late, "late", scope="w"))
        made = recipe.again(directory, archive.episode)
    whole = b"".join(line + b"\n" for line in lines_of(made.rows))
    assert whole == rows_path(tmp_path / "datasets", dataset).read_bytes()
    rows = load_rows(rows_path(tmp_path / "datasets", dataset))
    assert len(rows) == 100
    assert all(row.advantages and row.logprobs and row.share == 0.5 for row in rows)
