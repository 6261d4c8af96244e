"""How well skills are found by words, by meaning and by both, of written questions.

Goes in: `skill_questions/tuning.txt` and `reported.txt`, blocks of a skill's name, its description
and three questions. The first question shares with its skill only a rare word (*identifier*), the
second none but what all texts have (*paraphrase*), the third a word that others have as well
(*mixed*); `tests/skills` holds them to that. Comes out: how often the skill is found. Decision:
how rankings are joined is chosen on the tuning part alone, whose skills are of other fields than
those of the reported part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentloop.gates.exact import difference_ci95, wilson95
from agentloop.records import Skill
from agentloop.skills.document import Document, to_skill
from agentloop.skills.search import CONSTANT, WIDTH, Finder

FAMILIES = ("identifier", "paraphrase", "mixed")
Ranking = Sequence[tuple[str, float]]
Join = Callable[[Ranking, Ranking], list[str]]
"""Rankings by words (bm25, lower is better) and by meaning (cosine) -> ids, best first."""


@dataclass(frozen=True)
class Question:
    """A text, the id of the skill that it is about, and how it was worded."""

    text: str
    skill: str
    family: str


def read(part: str) -> tuple[list[tuple[str, Skill]], list[Question]]:
    """The skills of a part (`tuning`, `reported`) by id, and the questions about them."""
    text = (Path(__file__).parent / "skill_questions" / f"{part}.txt").read_text(encoding="utf-8")
    skills, asked = [], []
    for block in text.strip().split("\n\n"):
        name, description, *questions = block.split("\n")
        skills.append((name, to_skill(Document(name=name, description=description))))
        pairs = zip(questions, FAMILIES, strict=True)
        asked += [Question(one, name, family) for one, family in pairs]
    return skills, asked


# --- ways to join two rankings ------------------------------------------------------------------


def by_words(words: Ranking, meaning: Ranking) -> list[str]:
    """Words alone."""
    return [name for name, _ in words]


def by_meaning(words: Ranking, meaning: Ranking) -> list[str]:
    """Meaning alone."""
    return [name for name, _ in meaning]


def reciprocal(constant: float, weight: float = 0.5) -> Join:
    """Reciprocal rank fusion (`agentloop.skills.search`) with a `weight` of words, 0 to 1; a half
    is the plain one."""

    def join(words: Ranking, meaning: Ranking) -> list[str]:
        scores: dict[str, float] = {}
        for ranking, share in ((words, weight), (meaning, 1 - weight)):
            for place, (name, _) in enumerate(ranking, 1):
                scores[name] = scores.get(name, 0.0) + share / (constant + place)
        return _best(scores)

    return join


def convex(weight: float, least: tuple[float, float] | None = None) -> Join:
    """Convex combination of scores that were brought to [0, 1]: by the lowest and highest of each
    ranking, or with `least` by the lowest that bm25 and cosine can be, (0, -1). Bruch, Gai and
    Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", ACM TOIS 42 (2023)."""

    def join(words: Ranking, meaning: Ranking) -> list[str]:
        scores: dict[str, float] = {}
        turned = [(name, -score) for name, score in words]
        for at, (ranking, share) in enumerate(((turned, weight), (meaning, 1 - weight))):
            values = [score for _, score in ranking]
            low = least[at] if least else min(values, default=0.0)
            span = max(values, default=0.0) - low or 1.0
            for name, score in ranking:
                scores[name] = scores.get(name, 0.0) + share * (score - low) / span
        return _best(scores)

    return join


def candidates() -> dict[str, Join]:
    """What the tuning part chooses from."""
    weights = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
    found = {
        f"reciprocal ranks, {constant}, words {weight}": reciprocal(constant, weight)
        for constant in (0, 1, 2, 5, 10, 20, 60) for weight in weights[3:]
    }  # fmt: skip
    for weight in weights:
        found[f"convex, words {weight}"] = convex(weight)
        found[f"convex from the least, words {weight}"] = convex(weight, (0.0, -1.0))
    return found


SHIPPED = f"reciprocal ranks, {CONSTANT}, words 0.5"


# --- measuring ----------------------------------------------------------------------------------


class Searched:
    """Both rankings of every question by one finder; `shipped` are its own answers."""

    def __init__(self, finder: Finder, asked: Sequence[Question]) -> None:
        self.size, self.asked = len(finder.skills), asked
        self.rankings = [
            (finder.words.near(one.text, WIDTH), finder.meaning(one.text, WIDTH)) for one in asked
        ]
        self.shipped = [[name for name, _, _ in finder.pick(one.text, 5)] for one in asked]

    def answers(self, join: Join) -> list[list[str]]:
        """The first five of each question."""
        return [join(*rankings)[:5] for rankings in self.rankings]

    def found(self, answers: Sequence[Sequence[str]], k: int) -> np.ndarray:
        """Whether the skill is among the first `k`, by question."""
        return np.array(
            [one.skill in found[:k] for one, found in zip(self.asked, answers, strict=True)]
        )

    def quality(self, answers: Sequence[Sequence[str]]) -> float:
        """What is chosen by: the mean of found first and found among five."""
        return float(np.mean([self.found(answers, 1).mean(), self.found(answers, 5).mean()]))

    def row(self, who: str, answers: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Shares found first and among five, with Wilson's intervals; among five by family."""
        shares: dict[str, Any] = {}
        for k in (1, 5):
            hits = self.found(answers, k)
            low, high = wilson95(int(hits.sum()), len(hits))
            shares[f"found_in_{k}"] = round(float(hits.mean()), 3)
            shares[f"found_in_{k}_ci95"] = [round(low, 3), round(high, 3)]
        for family in FAMILIES:
            mine = np.array([one.family == family for one in self.asked])
            shares[family] = round(float(self.found(answers, 5)[mine].mean()), 3)
        return {"who": who, "skills": self.size, "questions": len(self.asked), **shares}

    def gain(self, new: Sequence[Sequence[str]], old: Sequence[Sequence[str]]) -> list[float]:
        """What one answers better among five than another, with its 95 % interval."""
        ours, theirs = self.found(new, 5), self.found(old, 5)
        counts = [int((ours & theirs).sum()), int((ours & ~theirs).sum()),
                  int((~ours & theirs).sum()), int((~ours & ~theirs).sum())]  # fmt: skip
        effect = float(ours.mean() - theirs.mean())
        return [round(one, 3) for one in (effect, *difference_ci95(*counts))]


def chosen(tuning: Searched) -> dict[str, float]:
    """Every candidate's quality on the tuning part, best first."""
    found = {name: tuning.quality(tuning.answers(join)) for name, join in candidates().items()}
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def compared(searched: Searched, others: Mapping[str, Join]) -> list[dict[str, Any]]:
    """A row for words, for meaning, for what is shipped and for `others`."""
    alone = {"words alone": by_words, "meaning alone": by_meaning}
    rows = [searched.row(who, searched.answers(join)) for who, join in {**alone, **others}.items()]
    gains = {
        f"gain_over_{who.split()[0]}": searched.gain(searched.shipped, searched.answers(join))
        for who, join in alone.items()
    }
    return [*rows, {**searched.row("both, as shipped", searched.shipped), **gains}]


def _best(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: (-scores[name], name))
