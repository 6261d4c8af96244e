"""Process values of a graded tree, and its verified paths as episodes with exact tokens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.datasets.rows import sft_rows
from agentloop.datasets.tree_values import process_values, single, steps_of, worth_imitating
from agentloop.records import Episode, Message, Node, Score, Task, Trajectory

#                 root   a  b  c  x  y  z
PARENTS = (None, 0, 1, 2, 1, 0, 5)
A, B, C, X, Y, Z = 1, 2, 3, 4, 5, 6


def test_the_values_of_the_source() -> None:
    values = process_values(PARENTS, [C], [X, Z])
    assert values[0] == 0.0
    expected = {A: 1 / 3, B: 2 / 3, C: 1.0, X: 1 / 9, Y: 0.0, Z: 0.0}
    for node, value in expected.items():
        found = values[node]
        assert found is not None and abs(found - value) < 1e-12


def test_the_nearest_right_end_counts() -> None:
    """Root, a, then b and c to a right end, or d, another one."""
    for right in ([3, 4], [4, 3]):
        values = process_values((None, 0, 1, 2, 1), right, [])
        assert values == [0.0, 0.5, 0.75, 1.0, 1.0]


@settings(deadline=None)
@given(st.integers(1, 12))
def test_a_straight_path_gains_the_same_at_every_step(length: int) -> None:
    parents = (None, *range(length))
    values = process_values(parents, [length], [])
    for step in range(length + 1):
        value = values[step]
        assert value is not None and abs(value - step / length) < 1e-9


@st.composite
def trees(draw: st.DrawFn) -> tuple[tuple[int | None, ...], list[int], list[int]]:
    """Parents, right ends, wrong ends."""
    size = draw(st.integers(1, 25))
    parents = (None, *(draw(st.integers(0, at)) for at in range(size)))
    leaves = [at for at in range(1, size + 1) if at not in parents]
    kind = {leaf: draw(st.sampled_from(["right", "wrong", "open"])) for leaf in leaves}
    ends = {name: [at for at in leaves if kind[at] == name] for name in ("right", "wrong")}
    return parents, ends["right"], ends["wrong"]


@settings(deadline=None)
@given(trees())
def test_values_are_shares_and_known_where_an_end_was_graded(
    tree: tuple[tuple[int | None, ...], list[int], list[int]],
) -> None:
    parents, right, wrong = tree
    values = process_values(parents, right, wrong)
    above: set[int] = set()
    for end in (*right, *wrong):
        at: int | None = end
        while at is not None:
            above.add(at)
            at = parents[at]
    for at, value in enumerate(values):
        assert (value is not None) == (bool(right) and at in above)
        assert value is None or 0.0 <= value <= 1.0
    assert all(abs((values[end] or 0.0) - 1.0) < 1e-9 for end in right)
    assert all((values[end] or 0.0) < 1.0 for end in wrong)


def node(parent: int | None, role: str, text: str, ids: tuple[int, ...]) -> Node:
    sampled = role == "assistant"
    return Node(
        parent=parent, message=Message(role=role, content=text), token_ids=ids,  # type: ignore[arg-type]
        sampled=sampled, logprobs=(-0.5,) * len(ids) if sampled else None,
    )  # fmt: skip


NODES = (
    node(None, "system", "be brief", ()),
    node(0, "user", "2 + 3 + 4?", (1, 2)),
    node(1, "assistant", "2 + 3 = 5", (3, 4)),
    node(1, "assistant", "2 + 3 = 6", (3, 5)),
    node(1, "assistant", "2 + 3 = 5 ", (3, 4, 9)),  # said again
    node(2, "user", "next", (6,)),
    node(5, "assistant", "Answer: 9", (7, 8)),
    node(4, "user", "next", (6,)),
    node(7, "assistant", "Answer: 8", (7, 9)),
)
SEARCH = Episode(
    id="ep-1", task=Task(id="t", prompt="2 + 3 + 4?", expected="9"), bundle="b", purpose="train",
    run="r", seed=1, trajectories=(Trajectory(nodes=NODES, drift=3),), answer="8",
)  # fmt: skip


def test_the_tree_is_read_off_the_trajectory() -> None:
    steps = steps_of(SEARCH.trajectories[0])
    assert steps.texts == ("", "2 + 3 = 5", "2 + 3 = 6", "Answer: 9", "Answer: 8")
    assert steps.parents == (None, 0, 0, 1, 1)  # what was said twice is one step
    assert steps.nodes == (None, 2, 3, 6, 8) and steps.ends == [3, 4]
    assert steps.prefix(4) == ["2 + 3 = 5", "Answer: 8"]


def test_a_path_becomes_an_episode_with_its_exact_tokens() -> None:
    steps = steps_of(SEARCH.trajectories[0])
    score = Score(value=1.0, success=True, source="s")
    made = single(SEARCH, steps, 3, answer="9", score=score)
    assert made.id != SEARCH.id and made.purpose == "collect" and made.answer == "9"
    assert made.success and made.usage.tokens == 0
    assert made == single(SEARCH, steps, 3, answer="9", score=score)
    [row] = sft_rows([made], system="other words")
    assert [one.content for one in row.prompt] == ["other words", "2 + 3 + 4?"]
    assert row.segments == ((3, 4), (6,), (7, 8)) and row.sampled == (True, False, True)
    other = single(SEARCH, steps, 4, answer="8", score=score)
    assert other.id != made.id and sft_rows([other], system="")[0].segments[0] == (3, 4, 9)


def test_lucky_paths_are_left_out() -> None:
    steps = steps_of(SEARCH.trajectories[0])
    even = {1: 0.5, 3: 1.0, 4: 1.0}
    assert worth_imitating(steps, [3, 4], even, floor=0.5) == [3, 4]
    assert worth_imitating(steps, [3, 4], {**even, 1: 0.2}, floor=0.5) == []
    assert worth_imitating(steps, [3, 4], {**even, 4: 0.0}, floor=0.5) == [3, 4]
    assert worth_imitating(steps, [3, 4], {**even, 1: 0.26}, floor=0.5) == [3, 4]
    assert worth_imitating(steps, [3, 4], {}, floor=0.5) == [3, 4]
