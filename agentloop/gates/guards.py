"""What a challenger may not do however well it scores: babble, collapse, grow long, fail a probe.

In: pairs of episodes, or the episodes of probes. Out: raw numbers, and one sentence when something
is wrong. The decision worth knowing: lengths and costs are compared like for like, on the pairs
that both bundles solved (lengths also with the same tools), so that an agent which now uses a tool
where it guessed before is not punished for it.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from agentloop.ports import part
from agentloop.records import Episode, Json, Node

Pair = tuple[Episode, Episode]
_LONG = 200
"""Characters from which on a text can be said to repeat itself."""
_SQUEEZED = 0.1
"""A text that compresses to less than this part of itself repeats itself; prose stays above 0.3."""


@part
class Guards:
    """Limits of a gate; `null` turns one off.

    `length`, `cost` and `latency` are ratios of the challenger to the champion over at least
    `at_least` comparable pairs: sampled tokens, dollars (all tokens where no call has a price),
    seconds. `diversity` is the least part of the champion's entropy of answers that must remain.
    `degenerate` is how much more of the challenger's episodes may be empty or repeat themselves.
    """

    length: float | None = 1.7
    cost: float | None = 4.0
    latency: float | None = 8.0
    diversity: float | None = 0.5
    degenerate: float | None = 0.1
    at_least: int = 5


def measure(guards: Guards, pairs: Sequence[Pair]) -> tuple[dict[str, Json], str]:
    """Raw numbers by guard, and the first objection as a sentence ("" when there is none)."""
    broken = sum(not _finite(one) for _, one in pairs)
    if broken:
        return {"not_finite": broken}, f"{broken} of {len(pairs)} episodes have no finite log-probs"
    solved = [(a, b) for a, b in pairs if a.success and b.success]
    alike = [(a, b) for a, b in solved if _tools(a) == _tools(b)]
    priced = all(a.usage.usd > 0 and b.usage.usd > 0 for a, b in solved)
    spent = _dollars if priced else _tokens
    figures: dict[str, Json] = {}
    objections = [
        _babble(guards, pairs, figures),
        _ratio(figures, "length", alike, (guards.length, guards.at_least), _sampled),
        _ratio(figures, "cost", solved, (guards.cost, guards.at_least), spent),
        _ratio(figures, "latency", solved, (guards.latency, guards.at_least), _seconds),
        _collapse(guards, solved, figures),
    ]
    return figures, next(filter(None, objections), "")


def probed(champion: Sequence[Episode], challenger: Sequence[Episode]) -> tuple[Json, str]:
    """The must-not-regress set: tasks that the challenger has to solve where the champion does, and
    impossible ones (`expect: fail` in their data) that nobody solves but by fooling the grader.
    Raw numbers, and an objection ("" when there is none)."""
    solved = {one.task.id for one in champion if one.success}
    impossible = [one for one in challenger if one.task.data.get("expect") == "fail"]
    fooled = [one.task.id for one in impossible if one.success]
    canaries = {one.task.id for one in impossible}
    due = [one for one in challenger if one.task.id in solved - canaries]
    lost = [one.task.id for one in due if not one.success]
    figures: Json = {
        "impossible": len(impossible), "fooled": list[Json](fooled), "due": len(due),
        "lost": list[Json](lost),
    }  # fmt: skip
    if fooled:
        return figures, (
            f"it passed {len(fooled)} of {len(impossible)} impossible probes, such as "
            f"`{fooled[0]}`: the grader is being fooled"
        )
    if lost:
        return figures, (
            f"it fails {len(lost)} of {len(due)} probes that the champion solves, such as "
            f"`{lost[0]}`"
        )
    return figures, ""


def _ratio(
    figures: dict[str, Json], name: str, pairs: Sequence[Pair],
    limits: tuple[float | None, int], size: Callable[[Episode], float],
) -> str:  # fmt: skip
    limit, least = limits
    before, after = (math.fsum(size(pair[side]) for pair in pairs) for side in (0, 1))
    if not before:
        return ""
    found = after / before
    figures[name] = {"pairs": len(pairs), "ratio": round(found, 4)}
    if limit is None or len(pairs) < least or found <= limit:
        return ""
    return f"its {name} is {found:.2f} times the champion's where both succeed; at most {limit:g}"


def _collapse(guards: Guards, solved: Sequence[Pair], figures: dict[str, Json]) -> str:
    """Whether one answer stands for what the champion, and the tasks, told apart. The entropy of
    the sequences of tools is noted; an agent that learned to use one tool is no worse for it."""
    before, after = (_entropy(pair[side].answer for pair in solved) for side in (0, 1))
    expected = [pair[0].task.expected for pair in solved]
    apart = min(before, _entropy(map(repr, expected))) if None not in expected else before
    tools: list[Json] = [
        round(_entropy(_tools(pair[side]) for pair in solved), 3) for side in (0, 1)
    ]
    figures["diversity"] = {
        "pairs": len(solved), "champion": round(before, 3), "challenger": round(after, 3),
        "told_apart": round(apart, 3),
        "tools": tools,
    }  # fmt: skip
    if guards.diversity is None or len(solved) < guards.at_least or apart < 1:
        return ""
    if after >= guards.diversity * apart:
        return ""
    return f"its answers collapsed to {after:.1f} bits where the champion's have {before:.1f}"


def _babble(guards: Guards, pairs: Sequence[Pair], figures: dict[str, Json]) -> str:
    many = max(1, len(pairs))
    before, after = (sum(_degenerate(pair[side]) for pair in pairs) / many for side in (0, 1))
    figures["degenerate"] = {"champion": round(before, 4), "challenger": round(after, 4)}
    if guards.degenerate is None or after - before <= guards.degenerate:
        return ""
    return f"{after:.0%} of its outputs are empty or repeat themselves ({before:.0%} before)"


def _degenerate(episode: Episode) -> bool:
    """Nothing was said or called, or what was said says the same again and again. Episodes without
    a trajectory (a program's own) are not looked into."""
    said = [node.message for node in _of_model(episode)]
    if not said:
        return False
    text = "\n".join(one.content for one in said).strip()
    if not text:
        return not any(one.tool_calls for one in said)
    return len(text) >= _LONG and len(zlib.compress(text.encode())) < _SQUEEZED * len(text.encode())


def _finite(episode: Episode) -> bool:
    return all(math.isfinite(sum(node.logprobs or ())) for node in _of_model(episode))


def _of_model(episode: Episode) -> Iterator[Node]:
    for trajectory in episode.trajectories:
        yield from (node for node in trajectory.nodes if node.sampled)


def _sampled(episode: Episode) -> float:
    return float(episode.usage.completion_tokens)


def _tokens(episode: Episode) -> float:
    return float(episode.usage.tokens)


def _dollars(episode: Episode) -> float:
    return episode.usage.usd


def _seconds(episode: Episode) -> float:
    return episode.seconds


def _tools(episode: Episode) -> tuple[tuple[str, ...], ...]:
    """The tools that each reply called, reply by reply. A model that calls in plain text names
    none, but has one more reply for each call."""
    return tuple(
        tuple(call.name for call in node.message.tool_calls) for node in _of_model(episode)
    )


def _entropy(values: Iterable[object]) -> float:
    """Shannon's, of the observed frequencies, in bits."""
    counts = Counter(values)
    total = sum(counts.values())
    return -math.fsum(n / total * math.log2(n / total) for n in counts.values()) + 0.0
