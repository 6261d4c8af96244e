"""A shipped workflow as its tests need it: its folder, its toy checks, an episode of one reply."""

from __future__ import annotations

from pathlib import Path

from agentloop.records import Episode, Message, Node, Score, Task, Trajectory
from agentloop.workflows.load import load
from agentloop.workflows.schema import Check
from agentloop.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """Of the workflow `name`."""
    return ROOT / "workflows" / name


def toy_checks(name: str) -> list[Check]:
    """The checks of its toy experiments."""
    spec = load(str(folder(name)), Workspace((ROOT,))).spec
    return [check for check in spec.checks if check.tier == "toy"]


def bars(name: str) -> dict[str, float]:
    """The bar of each metric that they read."""
    return {check.metric: check.bar for check in toy_checks(name)}


def bounds(name: str) -> dict[str, tuple[str, float]]:
    """The same with its direction."""
    return {check.metric: (check.op, check.bar) for check in toy_checks(name)}


def replied(
    name: str, text: str, *, ids: tuple[int, ...], answer: str | None, task: str = "t",
    score: Score | None = None,
) -> Episode:  # fmt: skip
    """A rollout whose task is answered by one sampled reply; 5 is the right answer."""
    nodes = (
        Node(parent=None, message=Message(role="user", content=task), token_ids=(1,)),
        Node(parent=0, message=Message(role="assistant", content=text), token_ids=ids,
             logprobs=(0.0,) * len(ids), sampled=True),
    )  # fmt: skip
    return Episode(
        id=name, task=Task(id=task, prompt=task, expected="5"), bundle="b", purpose="collect",
        run="r", seed=0, answer=answer, trajectories=(Trajectory(nodes=nodes),), score=score,
    )  # fmt: skip
