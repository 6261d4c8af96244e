"""The canary's test: two bundles on live conversations, looked at after every reward.

In: one reward for each conversation of both sides, in the order in which they came, and what is to
be decided with which certainty. Out: keep looking, promote, or roll back, with the numbers behind
it. Tasks cannot be paired here, so neighbours in time are: the rewards that came since the last
pair make the next one as soon as there are some of both sides (the mean of each). A drift of what
people ask then moves both sides of a pair, and the side with more traffic wastes none. Evidence is
`betting.wealth`, so the numbers may be looked at at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agentloop.gates.betting import wealth

Side = Literal["champion", "canary"]
Action = Literal["keep", "promote", "roll back"]


@dataclass(frozen=True)
class Standing:
    """What the rewards say so far."""

    action: Action
    reason: str
    pairs: int
    """Pairs up to the decision, or all there are."""
    champion_mean: float
    """Over the pairs; 0 without one."""
    canary_mean: float
    gain: float
    """What a stake of 1 on "the canary is better" is worth at most so far."""
    harm: float
    """The same for "the canary is worse"."""
    differences: tuple[float, ...]
    """Canary minus champion, pair by pair."""


def judge(
    rewards: Iterable[tuple[Side, float]], *, alpha: float = 0.05, most: int = 1000
) -> Standing:
    """Promote once betting on a gain has grown by a factor of 1 / `alpha`, roll back once betting
    on a harm has, or after `most` pairs without either. A canary that is no better is promoted with
    a chance of at most `alpha`, one that is no worse rolled back early with at most `alpha`,
    however often this is asked (Ville 1939). Raises `ValueError` for a reward outside [0, 1]."""
    pairs = paired(rewards)[:most]
    differences = [canary - champion for champion, canary in pairs]
    gains, harms = wealth(differences), wealth([-one for one in differences])
    bar = 1 / alpha
    end = next((at for at in range(len(pairs)) if max(gains[at], harms[at]) >= bar), None)
    n = len(pairs) if end is None else end + 1
    pairs, gains, harms = pairs[:n], gains[:n], harms[:n]
    champion = sum(one for one, _ in pairs) / n if n else 0.0
    canary = sum(one for _, one in pairs) / n if n else 0.0
    gain, harm = max(gains, default=1.0), max(harms, default=1.0)
    action: Action = "keep"
    if end is not None:
        action = "promote" if gains[-1] >= bar else "roll back"
    elif n >= most:
        action = "roll back"
    rates = f"{canary:.3f} against {champion:.3f} over {n} pairs"
    why = {
        "promote": f"better: {rates}, evidence {gain:.3g} of {bar:.3g}",
        "roll back": f"worse: {rates}, evidence {harm:.3g} of {bar:.3g}",
        "keep": f"open: {rates}, evidence of gain {gain:.3g} and of harm {harm:.3g} of {bar:.3g}",
    }[action]
    if action == "roll back" and end is None:
        why = f"no proven gain: {rates}, evidence {gain:.3g} of {bar:.3g}"
    return Standing(action, why, n, champion, canary, gain, harm, tuple(differences[:n]))


def paired(rewards: Iterable[tuple[Side, float]]) -> list[tuple[float, float]]:
    """(champion, canary) per pair. Raises `ValueError` for a reward outside [0, 1]."""
    waiting: dict[Side, list[float]] = {"champion": [], "canary": []}
    pairs: list[tuple[float, float]] = []
    for side, value in rewards:
        if not 0 <= value <= 1:
            raise ValueError(f"a reward lies between 0 and 1, got {value}")
        waiting[side].append(value)
        if waiting["champion"] and waiting["canary"]:
            pairs.append((_mean(waiting["champion"]), _mean(waiting["canary"])))
            waiting = {"champion": [], "canary": []}
    return pairs


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
