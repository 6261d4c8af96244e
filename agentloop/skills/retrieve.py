"""Find the skill that a task needs.

Goes in: skills and the text of a task. Comes out: the nearest skills above a floor, so that a task
that none was made for gets none. A skill is as near as the nearest of its faces: what it says it is
for, and each of its example questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from agentloop.ports import Embedder
from agentloop.records import Skill
from agentloop.skills.similarity import embed

FLOOR = 0.75
"""Cosine below which a skill is not for a task. Between the two it was measured on: unseen tasks of
six families are at 0.95 or more to their skill; of 90 other families the nearest that is another
kind of task is at 0.67."""
_QUESTION = re.compile(r"^Question: (.*?)(?=\n\nAssistant:\n)", re.M | re.S)


def questions(document: str) -> list[str]:
    """The questions of the worked examples in a skill's document."""
    return [found.strip() for found in _QUESTION.findall(document)]


class Retriever:
    """Skills with their vectors; made once per bundle."""

    def __init__(self, skills: Sequence[tuple[str, Skill]], embedder: Embedder) -> None:
        self.skills, self.embedder = list(skills), embedder
        faces = [
            (place, text)
            for place, (_, skill) in enumerate(self.skills)
            for text in (
                f"{skill.name.replace('-', ' ')}. {skill.description}",
                *questions(skill.document),
            )
        ]
        self._owner = np.array([place for place, _ in faces], dtype=np.intp)
        self._vectors = embed([text for _, text in faces], embedder)

    def pick(
        self, text: str, k: int = 1, *, floor: float = FLOOR
    ) -> list[tuple[str, Skill, float]]:
        """Up to `k` of (id, skill, cosine), nearest first, none under `floor`."""
        if not self.skills or not text.strip():
            return []
        [vector] = embed([text], self.embedder)
        near = np.full(len(self.skills), -1.0)
        np.maximum.at(near, self._owner, self._vectors @ vector)
        order = np.argsort(-near, kind="stable")[:k]
        return [(*self.skills[at], float(near[at])) for at in order if near[at] >= floor]
