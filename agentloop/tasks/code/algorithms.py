"""Families of small algorithms: merge intervals, count ways, check brackets."""

from __future__ import annotations

from random import Random

from agentloop.records import Json
from agentloop.tasks.code.problem import Problem

_PAIRS = ("()", "[]", "{}", "<>", "«»")


def merging(rng: Random) -> Problem:
    """Intervals that touch or nearly do become one."""
    gap, least = rng.randint(0, 9), rng.randint(1, 20)

    def solve(intervals: list[list[int]]) -> list[list[int]]:
        made: list[list[int]] = []
        for low, high in sorted(intervals):
            if made and low - made[-1][1] <= gap:
                made[-1][1] = max(made[-1][1], high)
            else:
                made.append([low, high])
        return [one for one in made if one[1] - one[0] >= least]

    def inputs(rng: Random) -> list[Json]:
        starts = [rng.randint(-40, 40) for _ in range(rng.randint(0, 9))]
        return [[[low, low + rng.randint(0, 15)] for low in starts]]

    return Problem(
        signature="merge(intervals: list[list[int]]) -> list[list[int]]",
        statement="Each of `intervals` is a pair [low, high] with low <= high, in any order. Merge "
        "two whenever they overlap, touch, or the distance from the end of one to the start of "
        f"the other is at most {gap}. Return what remains as [low, high] pairs, sorted, without "
        f"those shorter than {least} (high - low < {least}).",
        solve=solve,
        inputs=inputs,
        edges=([[]], [[[0, least]]], [[[0, 50], [3, 4], [50 + gap, 70], [90, 90 + least - 1]]]),
        settings={"gap": gap, "least": least},
    )


def stairs(rng: Random) -> Problem:
    """In how many ways a staircase can be climbed."""
    steps, broken = sorted(rng.sample(range(1, 8), rng.randint(2, 3))), rng.randint(5, 15)

    def solve(n: int) -> int:
        ways = [1] + [0] * n
        for at in range(1, n + 1):
            if at % broken:
                ways[at] = sum(ways[at - step] for step in steps if step <= at)
        return ways[n]

    return Problem(
        signature="ways(n: int) -> int",
        statement=f"Someone climbs from stair 0 to stair `n`, {', '.join(map(str, steps[:-1]))} or "
        f"{steps[-1]} stairs at a time, and may never stand on a stair whose number is a multiple "
        f"of {broken} (stair 0 is allowed). Return in how many ways, the order of steps counted; "
        "0 if there is none. `n` is from 0 to 400.",
        solve=solve,
        inputs=lambda rng: [rng.choice((rng.randint(1, 20), rng.randint(21, 400)))],
        edges=([0], [1], [broken], [broken * 20 + 1]),
        settings={"steps": list[Json](steps), "broken": broken},
    )


def brackets(rng: Random) -> Problem:
    """Where a text of brackets goes wrong."""
    pairs, deepest = sorted(rng.sample(_PAIRS, rng.randint(3, 4))), rng.randint(2, 8)
    close = {pair[1]: pair[0] for pair in pairs}

    def solve(text: str) -> int:
        stack: list[str] = []
        for at, one in enumerate(text):
            if one in close.values():
                stack.append(one)
                if len(stack) > deepest:
                    return at
            elif one in close and (not stack or stack.pop() != close[one]):
                return at
        return len(text) if stack else -1

    def inputs(rng: Random) -> list[Json]:
        text, stack = "", list[str]()
        for _ in range(rng.randint(1, 16)):
            if stack and rng.random() < 0.55:
                text += stack.pop()[1]
            elif len(stack) < deepest or rng.random() < 0.1:
                stack.append(rng.choice(pairs))
                text += stack[-1][0]
        text += "".join(pair[1] for pair in reversed(stack))
        if rng.random() < 0.6:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(("x", " ", *_PAIRS[rng.randrange(5)])) + text[at:]
        return [text]

    return Problem(
        signature="first_error(text: str) -> int",
        statement=f"The brackets of `text` are {' '.join(pairs)}; all other characters are ignored."
        " Return the position, from 0, of the first character that is wrong: a closing bracket "
        "that does not close the last one still open, or an opening one that makes more than "
        f"{deepest} open at once. If there is none, return the length of `text` when brackets are "
        "still open at its end, else -1.",
        solve=solve,
        inputs=inputs,
        edges=([""], [pairs[0][0] * (deepest + 1)], [pairs[1][0]], [pairs[2][1]]),
        settings={"pairs": list[Json](pairs), "deepest": deepest},
    )


FAMILIES = {"code_merging": merging, "code_stairs": stairs, "code_brackets": brackets}
