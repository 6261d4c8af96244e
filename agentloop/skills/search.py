"""Find skills by words and by meaning at once.

Goes in: skills and a text. Comes out: the skills nearest to it, by both rankings joined. Words find
the rare name that an embedding blurs, meaning the paraphrase that shares no word. The rankings are
joined by place, not by score, as the scores of the two have no common scale: reciprocal rank fusion
(Cormack, Clarke and Büttcher, SIGIR 2009), sum of
1 / (constant + place). Something is always found;
`retrieve.Retriever` is for when there may be no skill for a task.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil

import numpy as np

from agentloop.errors import UsageError
from agentloop.ports import Embedder
from agentloop.records import Skill
from agentloop.skills.functions import functions
from agentloop.skills.retrieve import questions
from agentloop.skills.similarity import embed

Near = Callable[[str, int], Sequence[tuple[str, float]]]
"""(text, k) -> (id, anything), nearest first: such as the search of the store's Chroma index."""
CONSTANT = 5
"""Of the fusion. Its paper has 60, for many rankings of a thousand: two middling places then weigh
more than one first. Here, of 10,000 skills, the right one is among the first five for 47 % of
paraphrases with 5, for 31 % with 60, and for all questions in the skill's own words with either
(`benchmarks.skills`)."""
WIDTH = 50
"""Places of each ranking that are joined; what is lower adds less than a fiftieth."""
_TERMS = 24
"""Words of a text that are looked for, the rarest: the time is theirs."""
_WORD = re.compile(r"\w+")
_WEIGHTS = "4.0, 2.0, 2.0, 1.0"


class Words:
    """Full-text search (SQLite FTS5, bm25) over names, descriptions, functions and questions; in
    memory, as it takes 0.1 ms a skill to build and must never disagree with the log."""

    def __init__(self, skills: Sequence[tuple[str, Skill]]) -> None:
        self._ids = [name for name, _ in skills]
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        try:
            self._db.execute(
                "CREATE VIRTUAL TABLE skill USING fts5(name, description, functions, questions,"
                " tokenize = 'porter unicode61 remove_diacritics 2')"
            )
        except sqlite3.OperationalError as error:
            raise UsageError(f"this Python's SQLite cannot search by words: {error}") from error
        rows = [(at, *_columns(skill)) for at, (_, skill) in enumerate(skills)]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO skill (rowid, name, description, functions, questions)"
                             " VALUES (?, ?, ?, ?, ?)", rows)  # fmt: skip
        self._db.execute("COMMIT")
        self._seen = Counter(
            word for _, *columns in rows for word in {w for text in columns for w in _split(text)}
        )

    def near(self, text: str, k: int) -> list[tuple[str, float]]:
        """Up to `k` of (id, bm25 rank, lower is better) that share a word with `text`."""
        words = dict.fromkeys(_split(text))  # one that is in no skill may still match by its stem
        rarest = sorted(words, key=lambda word: (not self._seen[word], self._seen[word]))[:_TERMS]
        if not rarest:
            return []
        query = " OR ".join(f'"{word}"' for word in rarest)  # word characters alone: no syntax
        with self._lock:
            found = self._db.execute(
                f"SELECT rowid, bm25(skill, {_WEIGHTS}) AS place FROM skill WHERE skill MATCH ?"
                " ORDER BY place, rowid LIMIT ?",
                (query, k),
            ).fetchall()
        return [(self._ids[at], float(score)) for at, score in found]

    def close(self) -> None:
        """Free the memory; idempotent."""
        with self._lock:
            self._db.close()


class Meaning:
    """Exact search by meaning: a skill is as near as the nearest of what it says it is for and its
    example questions. In 32 bits: the time is that of reading the matrix once."""

    def __init__(self, skills: Sequence[tuple[str, Skill]], embedder: Embedder) -> None:
        self._ids, self._embedder = [name for name, _ in skills], embedder
        faces = [
            (f"{one.name.replace('-', ' ')}. {one.description}", *questions(one.document))
            for _, one in skills
        ]
        self._starts = np.cumsum([0, *map(len, faces[:-1])]) if faces else np.zeros(0, np.intp)
        self._vectors = embed([text for some in faces for text in some], embedder).astype("f4")

    def near(self, text: str, k: int) -> list[tuple[str, float]]:
        """Up to `k` of (id, cosine), nearest first."""
        if not self._ids:
            return []
        [vector] = embed([text], self._embedder).astype("f4")
        cosine = np.maximum.reduceat(self._vectors @ vector, self._starts)
        top = np.argpartition(-cosine, min(k, len(cosine)) - 1)[:k]
        return [(self._ids[at], float(cosine[at])) for at in top[np.argsort(-cosine[top])]]


class Finder:
    """Both searches over the same skills, joined. `near` is the search by meaning; without it the
    `embedder` is asked, exactly and in memory. `sources` (id -> where it came from) bounds how much
    of an answer may come from one hand."""

    def __init__(
        self, skills: Sequence[tuple[str, Skill]], embedder: Embedder | None = None, *,
        near: Near | None = None, sources: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.skills = dict(skills)
        self.words, self.sources = Words(skills), sources or {}
        if near is None:
            if embedder is None:
                raise UsageError("a search by meaning needs an embedder or `near`; give one")
            near = Meaning(skills, embedder).near
        self.meaning = near

    def pick(self, text: str, k: int = 5, *, share: float = 1.0) -> list[tuple[str, Skill, float]]:
        """Up to `k` of (id, skill, joined score), best first; at most `share` of them from any one
        source that has a name."""
        if not text.strip():
            return []
        rankings = [self.words.near(text, WIDTH), self.meaning(text, WIDTH)]
        most, given = ceil(k * share), Counter[str]()
        found: list[tuple[str, Skill, float]] = []
        for name, score in fuse([[name for name, _ in ranking] for ranking in rankings]):
            if name not in self.skills or len(found) == k:
                continue
            source = self.sources.get(name, "")
            if source and given[source] == most:
                continue
            given[source] += 1
            found.append((name, self.skills[name], score))
        return found

    def close(self) -> None:
        """Free the memory; idempotent."""
        self.words.close()


def fuse(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """(id, score) by reciprocal rank fusion, best first; equal scores in order of id."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for place, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (CONSTANT + place)
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))


def _columns(skill: Skill) -> tuple[str, str, str, str]:
    offered = "\n".join(f"{one.signature} {one.doc}".replace("_", " ") for one in functions(skill))
    return skill.name, skill.description, offered, "\n".join(questions(skill.document))


def _split(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower().replace("_", " ")) if len(word) > 1]
