"""Training texts that repeat a held-out one are found, changed numbers or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.decontaminate import Decontaminate, common

PROBLEM = (
    "A baker sells 48 loaves in the morning and then half as many in the afternoon of the same "
    "day; how many loaves did the baker sell altogether, if 5 of them were returned?"
)
RULE = Decontaminate()


def test_a_near_duplicate_with_other_numbers_is_found() -> None:
    swapped = PROBLEM.replace("48", "62").replace("5 of", "9 of")
    assert RULE.repeated([swapped, PROBLEM.upper(), "Something else"], [PROBLEM]) == [0, 0, None]


def test_both_conditions_must_hold() -> None:
    words = PROBLEM.split()
    run_alone = " ".join([*words[:14], *(f"other{at}" for at in range(60))])
    longer = " ".join([*words[:14], *(f"own{at}" for at in range(40))])
    assert RULE.repeated([run_alone], [longer]) == [None]
    broken = " ".join(word if at % 10 else f"w{at}" for at, word in enumerate(words))
    assert common(broken.split(), words) > 0.6 * len(words)
    assert RULE.repeated([broken], [PROBLEM]) == [None]


def test_a_held_out_text_inside_a_longer_one_is_found_and_short_ones_too() -> None:
    assert RULE.repeated([f"Solve this. {PROBLEM} Show the steps."], [PROBLEM]) == [0]
    assert RULE.repeated(["what is 3+4 ?", "What is 3 + 5?"], ["What is 3+4?"]) == [0, None]
    assert RULE.repeated(["Is 3 + 4 even?"], ["So tell me: is 3 + 4 even? Or not"]) == [0]
    assert RULE.repeated(["", "?!"], ["", PROBLEM]) == [None, None]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_common_subsequence_is_the_longest(one: str, two: str) -> None:
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
            )
    assert common(one, two) == table[-1][-1]
