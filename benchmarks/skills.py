"""A library of 10,000 skills: find the right ones and show them, beside a search by meaning alone.

Goes in: generated skills of 16 subjects and ten actions, and written ones with written questions
among them (`benchmarks.skill_search`). Comes out: milliseconds per query over the generated, and
how often the right one is found of the written. Peers do the half by meaning: Chroma alone (its
documented in-memory client, our vectors) and one matrix product in NumPy; SQLite FTS5 alone does
the other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentloop.records import Skill
from agentloop.skills.document import Document, to_skill
from agentloop.skills.search import Finder, Words
from agentloop.skills.similarity import embed
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.tools.skills import TOKENS, catalogue
from benchmarks.harness import Check, Result, main, median
from benchmarks.skill_search import (
    SHIPPED,
    Searched,
    candidates,
    chosen,
    compared,
    read,
    reciprocal,
)

COUNT, QUERIES, K = 10_000, 200, 5
_ACTIONS = {
    "convert": "turn into another unit", "sum": "add up", "sort": "put in order",
    "count": "tell how many", "rename": "give another title to", "export": "write out",
    "compare": "tell the difference between", "plot": "draw", "merge": "join", "split": "divide",
}  # fmt: skip
_OBJECTS = {
    "invoices": "bills", "receipts": "proofs of purchase", "songs": "music tracks",
    "meetings": "appointments", "recipes": "cooking instructions", "routes": "ways to go",
    "photographs": "pictures", "contracts": "agreements", "emails": "mail", "taxes": "dues",
    "passwords": "secret phrases", "flights": "plane trips", "hotels": "places to sleep",
    "budgets": "spending plans", "temperatures": "degrees of heat", "employees": "staff",
}  # fmt: skip
_WAYS = {
    "weekly": "every seven days", "monthly": "each month", "yearly": "once a year",
    "nightly": "every night", "quickly": "fast", "carefully": "with caution",
    "quietly": "without noise", "twice": "two times", "alphabetically": "from a to z",
    "randomly": "by chance", "remotely": "from afar", "manually": "by hand",
}  # fmt: skip
_PLACES = "berlin oslo paris rome tokyo lima cairo delhi quito accra perth dublin".split()  # noqa: SIM905
_TOPICS = "schools banks clinics farms museums".split()  # noqa: SIM905


def library(count: int, seed: int = 0) -> tuple[list[tuple[str, Skill]], list[tuple[str, str]]]:
    """Skills by id, and (question, id) of some of them: one half in the skill's own words but for
    the action, the other a paraphrase that shares only names of places and topics."""
    rng = random.Random(seed)
    kinds = [
        (action, thing, way, place, topic)
        for action in _ACTIONS for thing in _OBJECTS for way in _WAYS
        for place in _PLACES for topic in _TOPICS
    ]  # fmt: skip
    skills, asked = [], []
    for number, (action, thing, way, place, topic) in enumerate(rng.sample(kinds, count)):
        description = f"{action.capitalize()} {thing} {way} for {topic} in {place.capitalize()}."
        name = f"{action}-{thing}-{number}"
        skills.append((f"skill-{number}", to_skill(Document(name=name, description=description))))
        if number % 2:
            thing, way = _OBJECTS[thing], _WAYS[way]
        about = f"Please {_ACTIONS[action]} the {thing}, {way}: the {topic} of {place} need it."
        asked.append((about, f"skill-{number}"))
    return skills, rng.sample(asked, min(QUERIES, count))


def measured(
    near: Callable[[str], Sequence[str]], asked: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Milliseconds per query (median, 95th of 100) and the share found among the first `K`."""
    times, right = [], 0
    near(asked[0][0])  # warms what is loaded on first use
    for text, name in asked:
        begun = time.perf_counter()
        found = near(text)
        times.append(1000 * (time.perf_counter() - begun))
        right += name in found[:K]
    return {
        "p50_ms": median(times),
        "p95_ms": float(f"{np.percentile(times, 95):.4g}"),
        f"found_in_{K}": round(right / len(asked), 3),
    }


def chroma(
    vectors: Any, names: Sequence[str], embedder: WordLlamaEmbedder
) -> Callable[..., list[str]]:
    """Chroma alone, as its documentation sets it up, on our vectors."""
    import chromadb

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    held = client.create_collection("skills", metadata={"hnsw:space": "cosine"})
    for at in range(0, len(names), 5000):
        held.add(ids=list(names[at : at + 5000]), embeddings=vectors[at : at + 5000])

    def near(text: str, k: int = K) -> list[str]:
        asked = embed([text], embedder)
        return list(held.query(query_embeddings=asked, n_results=k)["ids"][0])

    return near


def measure(quick: bool) -> Result:
    """Time on the generated skills, quality on the written ones among them and by themselves."""
    embedder = WordLlamaEmbedder()
    timed, found = speed(quick, embedder), quality(embedder)
    return Result(timed.rows + found.rows, timed.checks + found.checks, timed.packages)


def quality(embedder: WordLlamaEmbedder) -> Result:
    """How rankings are joined is what the tuning part finds best in the large library; then, once,
    the reported part, in it and in a small one of the written skills alone."""
    (ours, first), (others, second) = read("tuning"), read("reported")
    written = [*ours, *others]
    small = Finder(written, embedder)
    large = Finder([*written, *library(COUNT - len(written))[0]], embedder)
    ranks = chosen(Searched(large, first))
    rows: list[dict[str, Any]] = [
        {"tuning": name, "quality": round(value, 4)} for name, value in ranks.items()
    ][:5]
    best = next(name for name in ranks if name.startswith("convex"))
    tried = {"reciprocal ranks, 60, words 0.5": reciprocal(60), best: candidates()[best]}
    reported = [compared(Searched(finder, second), tried) for finder in (large, small)]
    gain = {who: reported[0][-1][f"gain_over_{who}"][0] for who in ("words", "meaning")}
    return Result([*rows, *reported[0], *reported[1]], [
        Check("tuning: the best less what is shipped", max(ranks.values()) - ranks[SHIPPED], 0.0,
              at_most=True),
        Check("found among 5 more often than by words", gain["words"], 0.0),
        Check("found among 5 more often than by meaning", gain["meaning"], 0.0),
    ])  # fmt: skip


def speed(quick: bool, embedder: WordLlamaEmbedder) -> Result:
    """All of them on the same queries. That the right one is among five is told as well, but the
    fusion's constant was once fitted to these very questions."""
    skills, asked = library(COUNT)
    asked = asked[:50] if quick else asked
    names = [name for name, _ in skills]
    vectors = embed(
        [f"{one.name.replace('-', ' ')}. {one.description}" for _, one in skills], embedder
    ).astype(np.float32)
    words = Words(skills)

    def product(text: str) -> list[str]:
        [asked_for] = embed([text], embedder).astype(np.float32)
        near = vectors @ asked_for
        return [names[at] for at in np.argpartition(-near, K)[:K]]

    alone = chroma(vectors, names, embedder)
    joined = Finder(skills, near=lambda text, k: [(name, 0.0) for name in alone(text, k)])

    def by(finder: Finder) -> dict[str, Any]:
        return measured(lambda text: [name for name, _, _ in finder.pick(text, K)], asked)

    ours, exact = by(joined), by(Finder(skills, embedder))
    rows = [
        {"who": "words and meaning (Chroma)", "skills": len(skills), **ours},
        {"who": "words and meaning (exact)", **exact},
        {"who": "words alone (FTS5)", **measured(
            lambda text: [name for name, _ in words.near(text, K)], asked)},
        {"who": "meaning alone (numpy product)", **measured(product, asked)},
        {"who": "meaning alone (chromadb)", **measured(alone, asked)},
    ]  # fmt: skip
    begun = time.perf_counter()
    shown = catalogue([one for _, one in skills])
    spent = 1000 * (time.perf_counter() - begun)
    count = _tokens(shown)
    rows.append({"who": "catalogue", "ms": round(spent, 3), "tokens": count, "budget": TOKENS})
    return Result(rows, [
        Check(f"one of {COUNT} skills, p50 ms", ours["p50_ms"], 20.0, at_most=True),
        Check("the same, exact", exact["p50_ms"], 20.0, at_most=True),
        Check("tokens of the catalogue", count, TOKENS, at_most=True),
    ], ("chromadb", "numpy", "wordllama"))  # fmt: skip


def _tokens(text: str) -> int:
    """By the tokenizer that comes with wordllama."""
    from agentloop.store.embed import _model

    return len(_model().tokenizer.encode(text).ids)


if __name__ == "__main__":
    main("skills", measure)
