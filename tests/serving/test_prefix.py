"""The prefix tree against a model of it: what is stored is found, bounds hold, pins protect."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from agentloop.serving.prefix import PrefixTree, gather  # noqa: E402

TOKEN = 2 * 2 * 1 * 2 * 4


def kv_of(path_tokens, tokens):
    """KV that spells its own absolute positions and ids, so a wrong cut shows."""
    start = len(path_tokens)
    at = torch.tensor([[start + i, t] for i, t in enumerate(tokens)], dtype=torch.float32)
    return at.expand(2, 2, 1, len(tokens), 2).contiguous()


def compute(tree, node):
    before = []
    for part in node.path():
        if part.kv is None:
            tree.fill(part, kv_of(before, part.tokens))
        before += part.tokens


def check_path(node, tokens):
    assert [t for part in node.path() for t in part.tokens] == tokens
    joined = torch.cat(gather(node.path()), 3)
    assert torch.equal(joined, kv_of([], tokens))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_any_prompts_find_their_own_kv(prompts):
    tree = PrefixTree(10**9)
    for prompt in prompts:
        node, known = tree.plan("", prompt)
        assert known <= len(prompt)
        compute(tree, node)
        check_path(node, prompt)
        tree.unpin(node)
    again = [tree.plan("", prompt) for prompt in prompts]
    for prompt, (node, known) in zip(prompts, again, strict=True):
        assert known == len(prompt)
        check_path(node, prompt)
        tree.unpin(node)
    assert tree.planned == 0
    distinct = {tuple(p[: i + 1]) for p in prompts for i in range(len(p))}
    assert tree.size == len(distinct) * TOKEN
    assert tree.evict(0) == 0


def test_pins_protect_and_the_oldest_goes_first():
    tree = PrefixTree(12 * TOKEN)
    ends = []
    for first in (1, 2, 3):
        node, _ = tree.plan("", [first] * 5)
        compute(tree, node)
        ends.append(node)
    assert tree.evict() == 15 * TOKEN  # everything is in use
    for node in ends[1:]:
        tree.unpin(node)
    assert tree.evict() == 10 * TOKEN
    assert ends[1].kv is None and ends[0].kv is not None and ends[2].kv is not None


def test_adapters_do_not_share():
    tree = PrefixTree(10**9)
    node, _ = tree.plan("red", [1, 2, 3])
    compute(tree, node)
    assert tree.plan("blue", [1, 2, 3])[1] == 0
    assert tree.plan("red", [1, 2, 3])[1] == 3


def test_a_planned_prompt_that_nobody_needs_disappears():
    tree = PrefixTree(10**9)
    one, _ = tree.plan("", [1, 2, 3, 4])
    two, known = tree.plan("", [1, 2, 9])
    assert (known, tree.planned) == (2, 5)
    tree.unpin(one)
    tree.unpin(two)
    assert tree.planned == 0 and not tree.root("").children


def test_extend_keeps_what_is_there():
    tree = PrefixTree(10**9)
    base, _ = tree.plan("", [1, 2])
    compute(tree, base)
    end = tree.extend(base, [3, 4], kv_of([1, 2], [3, 4]))
    other = tree.extend(base, [3, 5], kv_of([1, 2], [3, 5]))
    check_path(end, [1, 2, 3, 4])
    check_path(other, [1, 2, 3, 5])
    assert tree.size == 5 * TOKEN
    with pytest.raises(ValueError, match="cannot split"):
        tree.split(end, 1)
