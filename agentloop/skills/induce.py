"""Make skills from what worked: group successes by kind of task, write down how they were done.

Goes in: successful episodes. Comes out: clusters of them, and one `Skill` per cluster whose body is
one or two of its worked examples. Kinds are found from the prompts alone, never from family
labels. A skill needs two independent successes, and is only kept when the code in its examples,
run again, prints the same (`validate`).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import numpy as np

from agentloop.ports import Embedder
from agentloop.records import Episode, SandboxResult, Skill
from agentloop.skills.describe import characteristic, shorten, template, unique
from agentloop.skills.document import Document, check, parse, to_skill
from agentloop.skills.similarity import embed, mask
from agentloop.trajectories.examples import clean, code_blocks, format_example, turns

_VERSION = "agentloop.version"
THRESHOLD = 0.68
"""Mean cosine at which two groups of prompts are one kind; midway between the nearest of two kinds
and the farthest of one (`similarity`)."""

MAX_EXAMPLE = 6000
"""Characters of one worked example; two of them stay under the 5,000 tokens that the Agent Skills
specification recommends for a body."""


# --- clusters -----------------------------------------------------------------------------------


def cluster(
    episodes: Sequence[Episode], embedder: Embedder, *, threshold: float = THRESHOLD
) -> list[list[Episode]]:
    """The successful ones of `episodes` by kind of prompt, largest cluster first.

    Average-linkage clustering on cosine, stopped at `threshold`; equal masked prompts start
    together. Deterministic. Memory is quadratic and time cubic in the distinct masked prompts
    (seconds for 1,000).
    """
    right = [episode for episode in episodes if episode.success]
    groups: dict[str, list[Episode]] = {}
    for episode in right:
        groups.setdefault(mask(episode.task.prompt), []).append(episode)
    if not groups:
        return []
    members = [[place] for place in range(len(groups))]
    vectors = embed(list(groups), embedder)
    sizes = [len(one) for one in groups.values()]
    for keep, gone in _merges(vectors @ vectors.T, sizes, threshold):
        members[keep] += members[gone]
        members[gone] = []
    texts = list(groups.values())
    order = {episode.id: place for place, episode in enumerate(right)}
    clusters = [
        sorted((one for place in places for one in texts[place]), key=lambda one: order[one.id])
        for places in members
        if places
    ]
    return sorted(clusters, key=lambda found: (-len(found), order[found[0].id]))


def _merges(
    similarity: np.ndarray, sizes: Sequence[int], threshold: float
) -> list[tuple[int, int]]:
    """Pairs (kept, merged into it), in order, by the Lance-Williams update of average linkage."""
    near, size = similarity.copy(), np.asarray(sizes, dtype=np.float64)
    np.fill_diagonal(near, -np.inf)
    merges: list[tuple[int, int]] = []
    while len(merges) < len(near) - 1:
        keep, gone = sorted(divmod(int(near.argmax()), len(near)))
        if near[keep, gone] < threshold:
            break
        merges.append((keep, gone))
        row = (size[keep] * near[keep] + size[gone] * near[gone]) / (size[keep] + size[gone])
        size[keep] += size[gone]
        near[keep], near[:, keep] = row, row
        near[gone], near[:, gone] = -np.inf, -np.inf
        near[keep, keep] = -np.inf
    return merges


# --- one skill ----------------------------------------------------------------------------------


def induce(
    episodes: Sequence[Episode],
    *,
    others: Sequence[Episode] = (),
    taken: Collection[str] = (),
    library: Mapping[str, Skill] | None = None,
    examples: int = 2,
) -> Skill | None:
    """A skill from one cluster; `None` without two successes on different prompts.

    `others` are episodes of other kinds (the name should tell it from them), `taken` the names
    that this one must not have, `library` the skills in use by id: one of the same name is the
    parent, and this its next version.
    """
    independent = _independent(episodes)
    if len(independent) < 2:
        return None
    shown = _pick(independent, examples)
    prompts = [clean(one.task.prompt) for one in independent]
    words = characteristic(prompts, [clean(one.task.prompt) for one in others])
    name = unique("-".join(words) or "task", taken)
    before = {key: one for key, one in (library or {}).items() if one.name == name}
    versions = [parse(one.document).metadata.get(_VERSION, "0") for one in before.values()]
    pattern = shorten(template(prompts), 300)
    body = "\n\n".join(
        [
            f"Tasks such as: {pattern}\nThey are solved as in these examples.",
            *(format_example(one) for one in shown),
        ]
    )
    question = shorten(" ".join(clean(shown[0].task.prompt).split()), 400)
    document = Document(
        name=name,
        description=(
            f"Solves tasks of this form: {pattern} — Use it when asked, for example: {question}"
        ),
        body=body,
        metadata={
            _VERSION: str(1 + max((int(one) for one in versions if one.isdecimal()), default=0)),
            "agentloop.successes": str(len(independent)),
            "agentloop.evidence": " ".join(one.id for one in shown),
        },
    )
    return to_skill(document, parents=tuple(before), evidence=tuple(one.id for one in independent))


def _independent(episodes: Sequence[Episode]) -> list[Episode]:
    """The shortest usable success of each prompt."""
    best: dict[str, Episode] = {}
    for one in episodes:
        size = len(format_example(one))
        if not one.success or not 0 < size <= MAX_EXAMPLE:
            continue
        known = best.get(one.task.prompt)
        if known is None or size < len(format_example(known)):
            best[one.task.prompt] = one
    return list(best.values())


def _pick(episodes: Sequence[Episode], n: int) -> list[Episode]:
    """The examples to show: solved the way most were, the answer read off the last output, in few
    and short messages. The first is the shortest, each next one the least like those before."""
    ways = Counter(_way(one) for one in episodes)

    def rank(one: Episode) -> tuple[bool, int, int]:
        return (not _grounded(one), -ways[_way(one)], len(turns(one)))

    ranked = sorted(episodes, key=lambda one: (rank(one), len(format_example(one)), one.id))
    best = [one for one in ranked if rank(one) == rank(ranked[0])]
    shown = [best.pop(0)]
    while best and len(shown) < n:
        seen = [mask(one.task.prompt) for one in shown]
        shown.append(min(best, key=lambda one: _likeness(one, seen)))
        best.remove(shown[-1])
    return [*shown, *(one for one in ranked if one not in shown)][:n]


def _likeness(episode: Episode, seen: Sequence[str]) -> float:
    """How much the masked prompt looks like one of `seen`, 0 to 1."""
    prompt = mask(episode.task.prompt)
    return max(
        difflib.SequenceMatcher(None, prompt, other, autojunk=False).ratio() for other in seen
    )


_LITERAL = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|\d+")
_RUN = re.compile(r"0(?:\s*[-+*/,]\s*0)+")


def _way(episode: Episode) -> str:
    """The code of an episode without its literals; runs of numbers of any length are one."""
    code = "\n".join(block for block, _ in code_blocks(format_example(episode)))
    return _RUN.sub("0", _LITERAL.sub("0", code))


def _grounded(episode: Episode) -> bool:
    blocks = code_blocks(format_example(episode))
    return bool(blocks) and bool(blocks[-1][1]) and blocks[-1][1] in turns(episode)[-1].content


# --- does it still work? ------------------------------------------------------------------------


async def validate(skill: Skill, run_code: Callable[[str], Awaitable[SandboxResult]]) -> list[str]:
    """What is wrong with a skill: its document, or code in a worked example that, run again, does
    not print what the example says. Raises the `SandboxError` of `run_code`."""
    problems = check(skill.document, folder=skill.name)
    if problems:
        return problems
    for code, output in code_blocks(parse(skill.document).body):
        result = await run_code(code)
        line = code.strip().partition("\n")[0][:60]
        if result.timed_out:
            problems.append(f"the code `{line}` ran out of time")
        elif result.error:
            problems.append(f"the code `{line}` failed: {result.error}")
        elif result.stdout.strip() != output:
            problems.append(
                f"the code `{line}` printed `{result.stdout.strip()[:60]}`, not `{output[:60]}`"
            )
    return problems
