"""Families over numbers: digits of big ints, recurrences, trimmed means, piecewise functions."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from agentloop.tasks.code.problem import Problem

_TOLERANCE = 1e-6


def digits(rng: Random) -> Problem:
    """Powers of the digits of a number in some base."""
    base, power, each = rng.randint(3, 16), rng.randint(1, 4), rng.randint(0, 5)

    def solve(n: int) -> int:
        total = 0
        while n:
            n, digit = divmod(n, base)
            total += digit**power + each
        return total

    more = f", plus {each} for each of these digits" if each else ""
    return Problem(
        signature="digit_sum(n: int) -> int",
        statement=f"Write `n`, which is 0 or more and may be very large, in base {base} without "
        f"leading zeros (0 has no digits). Return the sum of its digits, each to the power of "
        f"{power}{more}.",
        solve=solve,
        inputs=lambda rng: [rng.randrange(10 ** rng.choice((2, 4, 12, 40)))],
        edges=([0], [base], [base**60 - 1]),
        settings={"base": base, "power": power, "each": each},
    )


def recurrence(rng: Random) -> Problem:
    """A linear recurrence whose values soon are big."""
    p, q, c = rng.randint(1, 4), rng.choice((-2, -1, 1, 2, 3)), rng.randint(-3, 3)
    first, second = rng.randint(-3, 4), rng.randint(1, 6)

    def solve(n: int) -> int:
        a, b = first, second
        for _ in range(n):
            a, b = b, p * b + q * a + c
        return a

    return Problem(
        signature="term(n: int) -> int",
        statement=f"A sequence begins with a(0) = {first} and a(1) = {second}; from then on "
        f"a(n) = {p} * a(n-1) + {q} * a(n-2) + {c}. Return a(n) exactly; `n` is from 0 to 300.",
        solve=solve,
        inputs=lambda rng: [rng.choice((rng.randint(2, 12), rng.randint(13, 300)))],
        edges=([0], [1], [300]),
        settings={"p": p, "q": q, "c": c, "first": first, "second": second},
    )


def trimmed(rng: Random) -> Problem:
    """A mean without the extremes; too few values are an error."""
    low, high, scale = rng.randint(0, 3), rng.randint(0, 3), rng.randint(2, 60) / 4

    def solve(values: list[float]) -> float:
        kept = sorted(values)[low : len(values) - high]
        if len(values) <= low + high:
            raise ValueError(len(values))
        return sum(kept) / len(kept) * scale

    return Problem(
        signature="trimmed_mean(values: list[float]) -> float",
        statement=f"Leave out the {low} smallest and the {high} largest of `values` (one of equal "
        f"values as often as it must go). Return the mean of the others times {scale}. Raise "
        "ValueError if no value is left. A relative error of a millionth is allowed.",
        solve=solve,
        inputs=lambda rng: [
            [round(rng.uniform(-100, 100), 3) for _ in range(rng.randint(0, 12))]
        ],
        edges=([[]], [[1.5] * (low + high)], [[2.5] * (low + high + 1)], [[1e12, -1e12] * 5]),
        tolerance=_TOLERANCE,
        settings={"low": low, "high": high, "scale": scale},
    )  # fmt: skip


def piecewise(rng: Random) -> Problem:
    """Straight lines between given points."""
    xs = sorted(rng.sample(range(-20, 21), 4))
    ys = [rng.randint(-30, 30) for _ in xs]
    points = list(zip(xs, ys, strict=True))

    def solve(x: float) -> float:
        if x <= xs[0]:
            return float(ys[0])
        for (x0, y0), (x1, y1) in pairwise(points):
            if x <= x1:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return float(ys[-1])

    return Problem(
        signature="height(x: float) -> float",
        statement=f"Straight lines join the points {points} (x, y) from left to right. Return the "
        f"y of this line at `x`. Left of {xs[0]} it is always {ys[0]}, right of {xs[-1]} always "
        f"{ys[-1]}. A relative error of a millionth is allowed.",
        solve=solve,
        inputs=lambda rng: [round(rng.uniform(xs[0] - 3, xs[-1] + 3), 3)],
        edges=([-1e9], [1e9], [float(xs[1])], [(xs[1] + xs[2]) / 2]),
        tolerance=_TOLERANCE,
        settings={"points": [[x, y] for x, y in points]},
    )


FAMILIES = {
    "code_digits": digits,
    "code_recurrence": recurrence,
    "code_trimmed": trimmed,
    "code_piecewise": piecewise,
}
