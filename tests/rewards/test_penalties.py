"""Planted patterns are found, clean text is left alone, and exploration is blind to correctness."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.rewards.penalties import (
    Patterns,
    distinct,
    foreign_share,
    loops,
    searching,
    unreadable_share,
    with_effort,
)

SENTENCE = (
    "we add the two numbers and carry one then check result by subtracting again so answer is "
    "therefore first multiply seven times eight which gives fifty six plus π x y equals α"
)
FOREIGN = "пожалуйста сложим два числа и проверим ответ еще раз 我们把两个数字相加 然后检查结果"
WORDS, OTHER = SENTENCE.split(), FOREIGN.split()


def clean(chance: random.Random) -> list[str]:
    return [
        word if chance.random() < 0.8 else str(chance.randrange(1000))
        for word in chance.choices(WORDS, k=chance.randint(20, 150))
    ]


def looped(chance: random.Random) -> str:
    words = clean(chance)
    run = [*clean(chance)[: chance.randint(1, 12)]]
    return " ".join(words + run * (4 + 40 // len(run)))


def mixed(chance: random.Random) -> str:
    words = clean(chance)
    for _ in range(max(3, len(words) // 4)):
        words.insert(chance.randrange(len(words)), chance.choice(OTHER))
    return " ".join(words)


def test_planted_patterns_are_found_and_clean_text_is_not() -> None:
    chance, rule, n = random.Random(36), Patterns(longest=160), 200
    hits = {
        "loop": sum("loop" in rule.found(looped(chance)) for _ in range(n)),
        "charset": sum("charset" in rule.found(mixed(chance)) for _ in range(n)),
        "length": sum("length" in rule.found(" ".join(clean(chance) * 9)) for _ in range(n)),
    }
    false = sum(bool(rule.found(" ".join(clean(chance)))) for _ in range(n))
    assert min(hits.values()) >= 0.95 * n
    assert false <= 0.02 * n


def test_a_degenerate_text_earns_minus_one_however_right() -> None:
    rule = Patterns(ngram=2, times=3)
    assert rule.reward(1.0, "so it is so it is so it is") == -1.0
    assert rule.reward(1.0, "so it is") == 1.0
    assert rule.reward(0.0, "x", tokens=[1, 2, 1, 2, 1, 2]) == -1.0


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4), st.integers(2, 5))
def test_a_loop_is_a_run_that_stands_so_often(tokens: list[int], ngram: int, times: int) -> None:
    runs = [tokens[at : at + ngram] for at in range(len(tokens) - ngram + 1)]
    assert loops(tokens, ngram, times) == any(runs.count(run) >= times for run in runs)


def test_padding_does_not_raise_the_distinct_length() -> None:
    honest = list(range(50))
    assert distinct(honest + [7] * 500) <= distinct(honest) + 4
    assert distinct([]) == 0


def test_charsets() -> None:
    assert foreign_share("αβ ab") == 0.5
    assert foreign_share("日本語のテキスト") == 0.0
    assert foreign_share("1 + 2 = 3") == 0.0
    assert unreadable_share("a\ufffd\x00\n") == 0.5
    assert "charset" in Patterns().found("the answer \ufffd\ufffd is 5")


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (250, -3.0, -4.0),
        (500, -1.0, -2.0),
        (1000, 0.0, -1.0),
        (2000, 0.5, -0.5),
        (4000, 0.75, -0.25),
    ],
)
def test_the_published_table(length: int, right: float, wrong: float) -> None:
    assert sum(searching(True, length).values()) == right
    assert sum(searching(False, length).values()) == wrong


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_exploration_is_blind_to_correctness_and_rises_ever_less(a: int, b: int) -> None:
    one, other = searching(True, a), searching(False, a)
    assert one["exploration"] == other["exploration"]
    assert one["correct"] - other["correct"] == 1.0
    low, high = sorted((a, b))
    assert searching(True, low)["exploration"] <= searching(True, high)["exploration"]
    step = [searching(True, low + 1 + n)["exploration"] for n in range(3)]
    assert step[1] - step[0] > step[2] - step[1]


def test_an_answer_without_thought_is_the_worst() -> None:
    nothing = sum(searching(True, 0).values())
    honest = [
        sum(searching(right, n).values()) for right in (True, False, None) for n in range(2, 999)
    ]
    assert nothing < min(honest)
    assert searching(None, 10)["correct"] == -0.5
    assert searching(True, 900, longest=80) == searching(True, 80)
    with pytest.raises(UsageError):
        searching(True, -1)


def test_a_judge_that_failed_counts_half_and_is_seen() -> None:
    assert with_effort(1.0, 0.0) == {"value": 0.8, "effort": 0.0, "judge_failed": 0.0}
    for broken in (None, float("nan"), 7.0):
        assert with_effort(1.0, broken)["judge_failed"] == 1.0
        assert with_effort(1.0, broken)["value"] == pytest.approx(0.9)
