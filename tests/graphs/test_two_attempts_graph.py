"""The agent that answers twice: one fixed request in between, no grader anywhere near it."""

from __future__ import annotations

import json
from typing import Any

from rollout_fixtures import ROOT, attempt, rollouts

from agentloop.datasets.groups import attempts
from agentloop.datasets.rows import sft_rows
from agentloop.graphs.load import load_graph
from agentloop.records import Limits, Request


def graph() -> Any:
    return load_graph("two_attempts", [ROOT], ROOT)


def runs(replies: Any, orders: Any = (), **options: Any) -> Any:
    return rollouts(replies, orders, graph=graph(), tools=(), **options)


def test_the_second_answer_counts_and_the_first_is_kept() -> None:
    [episode] = runs(["Answer: 4", "Oh, no.\nAnswer: 5"])
    assert episode.failure is None and episode.answer == "5" and episode.usage.calls == 2
    [trajectory] = episode.trajectories
    assert [node.message.role for node in trajectory.nodes] == [
        "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert attempts(trajectory) == [1, 1, 2, 2]
    [row] = sft_rows([episode], system="")
    assert row.sampled == (True, False, True), "the request in between has no loss"


def test_the_request_is_the_same_whatever_was_answered_and_whatever_is_right() -> None:
    """Neither the expected answer nor a verdict on the first attempt can reach the model."""
    asked: list[Request] = []

    def reply(request: Request) -> str:
        asked.append(request)
        return "Answer: 5" if "2 + 3" in request.messages[0].content else "Answer: 1"

    orders = [
        attempt("What is 2 + 3?", expected="5", data={"secret": "QUINCE"}),
        attempt("What is 2 + 4?", expected="QUINCE", data={"right": False}),
    ]
    runs(reply, orders)
    assert len(asked) == 4
    between = {one.messages[-1].content for one in asked if len(one.messages) > 1}
    [text] = between
    assert text.startswith("There may be a mistake") and ", or none" in text
    seen = json.dumps([[node.content for node in one.messages] for one in asked])
    assert "QUINCE" not in seen and all(not one.tools for one in asked)
    first = [one.messages for one in asked if "2 + 4" in one.messages[0].content]
    assert [len(messages) for messages in first] == [1, 3]


def test_a_rollout_that_ends_with_its_first_attempt_says_so() -> None:
    [episode] = runs(["Answer: 4", "Answer: 5"], limits=Limits(turns=1, seconds=20))
    assert episode.failure is not None and episode.failure.reason == "turn_limit"
    assert attempts(episode.trajectories[0]) == [1, 1]
