"""Choose by meaning: the episodes nearest to a text, and those that say nothing new left out.

In: episodes, the store's search and the embedder, both lent by whoever joins the stages. Out: a
subset, and how near each one is. One decision: what is chosen must not depend on how an index was
built, so distances are measured here, ties are cut by name, and the search only proposes where
there are too many to measure. (A graph index has entries that it never finds, others after each
build: of 10,500 episodes Chroma missed 4 of the 1,000 nearest, the 35th and the 36th among them,
and asking for 4,000 did not bring all of them back.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agentloop.datasets.groups import sampled_text
from agentloop.errors import UsageError
from agentloop.ports import Embedder, part
from agentloop.records import Episode, Skill

Vectors = NDArray[np.float64]
_MEASURED = 50_000
"""So many different prompts are measured without a search: a fraction of a millisecond each, which
is less than it took to read the episodes."""
_OVER = 10
_LEAST = 1000
"""At least so many are asked for: it costs milliseconds, and the samples of one task all fit."""
_DIGITS = 6
"""Cosines are compared to so many digits: an index keeps single precision."""
_MARGIN = 1e-4
_BLOCK = 512


class Search(Protocol):
    """Find by meaning, as the store does."""

    def __call__(self, kind: str, text: str, k: int) -> Sequence[tuple[str, float]]:
        """(id, cosine distance) of about the `k` nearest of a kind (such as `episode`), nearest
        first; fewer only when there are no more."""
        ...


@part
class Near:
    """The `k` nearest to `text`, of those that pass every other condition."""

    text: Annotated[str, Field(min_length=1)]
    k: Annotated[int, Field(ge=1)]
    of: Literal["episodes", "tasks", "skills"] = "episodes"
    """Of what: single episodes; tasks, each with all its episodes, so that groups stay whole; or
    skills, with the episodes that were shown one of them."""

    def choose(
        self, episodes: Sequence[Episode], search: Search, embedder: Embedder, *,
        skill: Callable[[str], Skill] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """The cosine to `text` by the id of each chosen episode. `of` skills needs `skill`, which
        gives one by its id; raises `UsageError` without it, else what it raises."""
        if self.of == "skills":
            if skill is None:
                raise UsageError("`near` of skills needs the skills, and none were lent to it")
            return self._by_skill(episodes, skill, embedder)
        unit: Callable[[Episode], str] = _task if self.of == "tasks" else _name
        prompts = {unit(one): one.task.prompt for one in episodes}
        if len(set(prompts.values())) > _MEASURED:
            names = self._proposed({one.id: unit(one) for one in episodes}, search)
            prompts = {name: prompts[name] for name in names}
        chosen = self._nearest(prompts, embedder)
        return {one.id: chosen[unit(one)] for one in episodes if unit(one) in chosen}

    def _proposed(self, unit: Mapping[str, str], search: Search) -> Iterable[str]:
        """Enough units to hold the `k` nearest that the search finds, ties at the edge included;
        all once it would have to look at more entries than there are episodes to choose from."""
        width = max(_LEAST, _OVER * self.k)
        while width < len(unit):
            hits = search("episode", self.text, width)
            best: dict[str, float] = {}
            for name, distance in hits:
                if name in unit:
                    best.setdefault(unit[name], distance)
            found = list(best.values())
            # Beyond the last hit there may be others that are as near as it is.
            if len(found) >= self.k and found[self.k - 1] + _MARGIN < hits[-1][1]:
                return best
            if len(hits) < width:
                break
            width *= 4
        return set(unit.values())

    def _nearest(self, texts: Mapping[str, str], embedder: Embedder) -> dict[str, float]:
        """The cosines of the `k` nearest, by name."""
        each = embedded([self.text, *texts.values()], embedder)
        cosines = map(float, np.round(each[1:] @ each[0], _DIGITS) + 0.0)
        ranked = sorted(zip(texts, cosines, strict=True), key=lambda one: (-one[1], one[0]))
        return dict(ranked[: self.k])

    def _by_skill(
        self, episodes: Sequence[Episode], skill: Callable[[str], Skill], embedder: Embedder
    ) -> dict[str, float]:
        """All that were shown are measured, by the text that the store finds a skill by."""
        shown = {name: skill(name) for name in sorted({s for one in episodes for s in one.skills})}
        texts = {name: f"{one.name}\n{one.description}" for name, one in shown.items()}
        cosine = self._nearest(texts, embedder)
        return {
            one.id: max(cosine[name] for name in one.skills if name in cosine)
            for one in episodes
            if cosine.keys() & set(one.skills)
        }


@part
class Dedupe:
    """Leave out what means the same as something better that is kept."""

    above: Annotated[float, Field(gt=0.0, le=1.0)] = 0.97
    """Cosine from which two texts are one."""
    of: Literal["replies", "tasks"] = "replies"
    """Compare what the model wrote, or the prompts (a task then keeps all its episodes)."""

    def choose(self, episodes: Sequence[Episode], embedder: Embedder) -> set[str]:
        """Ids of those to keep. The better score is kept, then the smaller id."""
        ranked = sorted(episodes, key=lambda one: (-_value(one), one.id))
        if self.of == "replies":
            texts = {one.id: sampled_text(one) for one in ranked}
            return unlike(texts, embedder, above=self.above)
        texts = {_task(one): one.task.prompt for one in ranked}
        tasks = unlike(dict(sorted(texts.items())), embedder, above=self.above)
        return {one.id for one in episodes if _task(one) in tasks}


def unlike(texts: Mapping[str, str], embedder: Embedder, *, above: float) -> set[str]:
    """The names of those texts whose cosine to every one kept before them is below `above`; the
    first is always kept. Quadratic in their number, by blocks of matrix products."""
    names = list(texts)
    vectors = embedded(list(texts.values()), embedder)
    limit = above - 10.0**-_DIGITS
    kept: list[int] = []
    for start in range(0, len(names), _BLOCK):
        block = vectors[start : start + _BLOCK]
        new = np.ones(len(block), dtype=bool)
        for at in range(0, len(kept), _BLOCK):
            new &= (block @ vectors[kept[at : at + _BLOCK]].T < limit).all(axis=1)
        among = block @ block.T >= limit
        for place in range(len(block)):
            if new[place]:
                new[place + 1 :] &= ~among[place, place + 1 :]
                kept.append(start + place)
    return {names[at] for at in kept}


def embedded(texts: Sequence[str], embedder: Embedder) -> Vectors:
    """Unit vectors (n, d); equal texts are embedded once and have the same vector to the bit."""
    places = {text: place for place, text in enumerate(sorted(set(texts)))}
    if not places:
        return np.zeros((0, 0))
    vectors = np.asarray(embedder.embed(list(places)), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(places):
        raise UsageError(f"the embedder gave {len(vectors)} vectors for {len(places)} texts")
    chosen: Vectors = vectors[[places[text] for text in texts]]
    return chosen


def _name(episode: Episode) -> str:
    return episode.id


def _task(episode: Episode) -> str:
    return episode.task.id


def _value(episode: Episode) -> float:
    return episode.score.value if episode.score else 0.0
