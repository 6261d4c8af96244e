"""Skills among each other: which say the same, and one made of two.

Goes in: skills. Comes out: clusters of near-duplicates, or the merger of two: a version whose
parents they are, with the worked examples and files of both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agentloop.errors import UsageError
from agentloop.networks import components
from agentloop.ports import Embedder
from agentloop.records import Skill
from agentloop.skills.document import Document, parse, to_skill
from agentloop.skills.similarity import embed

ALIKE = 0.95
"""Cosine from which two skills say the same: of six kinds, skills that were learned apart from
tasks of one kind are at 0.98 or more, those of two kinds at 0.70 or less."""
_ROWS = 512


def duplicates(
    library: Mapping[str, Skill], embedder: Embedder, *, alike: float = ALIKE
) -> list[list[str]]:
    """Clusters of two and more ids that are linked by like names and descriptions, largest first.
    Time is quadratic: seconds for 10,000."""
    names = list(library)
    texts = [f"{one.name.replace('-', ' ')}. {one.description}" for one in library.values()]
    vectors = embed(texts, embedder).astype("f4")
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(names), _ROWS):
        near = vectors[start : start + _ROWS] @ vectors.T
        for row, column in np.argwhere(near >= alike):
            if start + row < column:
                pairs.append((names[start + row], names[column]))
    return [found for found in components(names, pairs) if len(found) > 1]


def merge(left: tuple[str, Skill], right: tuple[str, Skill]) -> Skill:
    """One skill of two, under the name and description of the first; of a file that both have, the
    same must be in both. Raises `UsageError` when it is not."""
    one, other = left[1], right[1]
    for path in one.files.keys() & other.files.keys():
        if one.files[path] != other.files[path]:
            raise UsageError(f"`{path}` differs between the two; make one of it by hand first")
    first, second = parse(one.document), parse(other.document)
    parts = [first.body]
    if second.body != first.body:
        parts.append(f"## {second.name}\n\n{second.description}\n\n{second.body}")
    version = max(int(_version(first)), int(_version(second))) + 1
    made = to_skill(
        Document(
            name=first.name, description=first.description, body="\n\n".join(parts),
            license=first.license if first.license == second.license else "",
            compatibility=first.compatibility or second.compatibility,
            metadata={**second.metadata, **first.metadata, "agentloop.version": str(version)},
        ),
        parents=(left[0], right[0]),
        evidence=tuple(dict.fromkeys([*one.evidence, *other.evidence])),
    )  # fmt: skip
    return Skill(
        name=made.name, description=made.description, document=made.document,
        parents=made.parents, evidence=made.evidence, files={**other.files, **one.files},
    )  # fmt: skip


def _version(document: Document) -> str:
    text = document.metadata.get("agentloop.version", "1")
    return text if text.isdecimal() and len(text) < 9 else "1"
