"""What only this workflow has: the skill-integrated reward, whether a skill was used, the scripted
model.

Goes in: episodes of chains, scored by the state of their worlds. Comes out: an advantage for each
sampled message: what the chain is paid at that position, minus the mean of its group. The decision
worth knowing: a call of a skill counts only when it returned and something that is still so in the
end came of it, inside the call or through its value, so a call for show is worth nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import repeat
from string import Formatter
from typing import Any, Literal

from agentloop.datasets.advantages import Baseline, normalised
from agentloop.datasets.credit import Credits
from agentloop.datasets.groups import samples
from agentloop.errors import UsageError
from agentloop.lanes.chain import CHAIN, written
from agentloop.ports import part
from agentloop.records import Episode, Request, content_id
from agentloop.worlds.apps.families import FAMILIES, Family
from agentloop.worlds.apps.goals import changed

Paid = Literal["skill", "chain", "outcome"]
NO_CODE = -1.0
"""Reward of a rollout that stops without a program."""


def skill_integrated(first: float, second: float, used: bool) -> tuple[float, float]:
    """The rewards of both positions: each its own outcome, and 1 more for a second task that was
    solved with a function made on the first; the first has that only when it was solved too."""
    bonus = float(used and second == 1.0)
    return first + bonus * float(first == 1.0), second + bonus


def paid(rule: Paid, first: float, second: float, used: bool) -> tuple[float, float]:
    """The rewards of both positions by a rule: `outcome` is each task's own, `chain` gives the
    first what the second earned as well, `skill` is `skill_integrated`."""
    if rule == "skill":
        return skill_integrated(first, second, used)
    return (first + second, second) if rule == "chain" else (first, second)


def used_skills(first: Episode, second: Episode) -> set[str]:
    """Functions made in `first` that `second` called with an effect; see the module."""
    made = {one.name for one in written(first)}
    start: Any = second.task.data.get("start") or {}
    end: Any = second.state.get("tables") or {}
    kept = changed(start, end) | ({"answer"} if second.state.get("answer") else set())
    turns: Any = second.state.get("turns") or []
    return {
        each["name"]
        for turn in turns
        for each in turn["used"]
        if each["name"] in made
        and any(kept.intersection(what) for _, what in (*each["inside"], *each["reached"]))
    }


@part
class ChainCredit:
    """Each position against the same position of the other members of its group, whatever their
    libraries; no division by a deviation."""

    reward: Paid = "skill"
    baseline: Baseline = "mean"

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `datasets.credit.Credit.assign`. A chain that lacks a position is left out of its
        group. Raises `UsageError` for an episode without a score."""
        groups: dict[str, list[tuple[Episode, Episode]]] = {}
        for first, second in pairs(episodes):
            name = content_id("chain", first.run, first.bundle, first.task.data.get("scenario"))
            groups.setdefault(name, []).append((first, second))
        credits: Credits = {(one.id, *at): 0.0 for one in episodes for at in samples(one)}
        for members in groups.values():
            earned = [self.earned(*pair) for pair in members]
            for position in (0, 1):
                gains = normalised([one[position] for one in earned], self.baseline)
                for pair, gain in zip(members, gains, strict=True):
                    places = samples(pair[position])
                    credits.update({(pair[position].id, *at): gain for at in places})
        return credits

    def earned(self, first: Episode, second: Episode) -> tuple[float, float]:
        """What both positions of one chain are paid."""
        own = [_outcome(one) for one in (first, second)]
        both = paid(self.reward, own[0], own[1], bool(used_skills(first, second)))
        silent = [not one.state.get("turns") for one in (first, second)]
        return (NO_CODE if silent[0] else both[0], NO_CODE if silent[1] else both[1])


def pairs(episodes: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """(first, second) of each chain of two, in the order of the seconds."""
    found: dict[tuple[str, str, str, int], dict[int, Episode]] = {}
    for one in episodes:
        place: Any = one.task.data.get(CHAIN)
        if place is not None:
            key = (one.run, one.bundle, str(one.task.data.get("scenario")), place["member"])
            found.setdefault(key, {})[place["position"]] = one
    return [(each[1], each[2]) for each in found.values() if 1 in each and 2 in each]


def _outcome(episode: Episode) -> float:
    if episode.score is None:
        raise UsageError(f"episode `{episode.id}` has no score; credit is for scored episodes")
    return episode.score.value


def replies(request: Request) -> str:
    """The scripted model: the expert's program for what the prompt asks, calling the function where
    there is one already. One time in three it calls something that does not exist, until it is
    trained."""
    own = [one for one in request.messages if one.name != "example" and one.role == "user"]
    if len(own) > 1:
        return "Answer: done"
    asked = own[0].content
    found = next(item for item in map(_read, FAMILIES, repeat(asked)) if item is not None)
    family, arguments = found
    known = f"{family.name}(" in asked
    code = family.use(arguments) if known else family.program(arguments)
    unlucky = zlib.crc32(f"{request.sampling.seed}/{asked}".encode()) % 3 == 0
    if unlucky and not request.policy:
        code = code.replace(f"{family.name}(", "missing(", 1) if known else f"missing()\n{code}"
    return f"```python\n{code}\n```"


def _read(family: Family, asked: str) -> tuple[Family, dict[str, Any]] | None:
    """The arguments of a task of this family; `None` when it is of another."""
    pattern, seen = "", set[str]()
    for text, name, _, quoted in Formatter().parse(family.ask):
        pattern += re.escape(text)
        if name is not None:
            value = f"(?P={name})" if name in seen else f"(?P<{name}>[^'\n]+?)"
            pattern += f"'{value}'" if quoted else value
            seen.add(name)
    found = re.search(f" asks: {pattern}$", asked, re.M)
    if found is None:
        return None
    given = {name: found[name] for name in family.parameters}
    return family, {name: int(one) if name == "count" else one for name, one in given.items()}
