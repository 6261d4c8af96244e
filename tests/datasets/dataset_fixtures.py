"""Small scored episodes with exact tokens, for the tests of datasets."""

from __future__ import annotations

from agentloop.records import Episode, Message, Node, Score, Task, Trajectory


def node(
    parent: int | None, role: str, ids: tuple[int, ...] = (), text: str = "", **fields: object
) -> Node:
    """A node; what the assistant says is sampled, with log-probs told from its ids."""
    sampled = role == "assistant"
    if sampled:
        fields.setdefault("logprobs", tuple(-one / 1000 for one in ids))
    return Node(
        parent=parent,
        message=Message(role=role, content=text or f"{role} {ids}"),  # type: ignore[arg-type]
        token_ids=ids,
        sampled=sampled,
        **fields,  # type: ignore[arg-type]
    )


def replies(*texts: str, start: int = 10, policy: str | None = None) -> Trajectory:
    """user, then reply and tool output in turn, ending with a reply; every token is another."""
    nodes = [node(None, "user", (1, 2, 3), "the question")]
    at = start
    for place, text in enumerate(texts):
        if place:
            nodes.append(node(len(nodes) - 1, "user", (at, at + 1), f"Output:\n{at}"))
            at += 10
        nodes.append(node(len(nodes) - 1, "assistant", (at, at + 1), text, policy=policy))
        at += 10
    return Trajectory(nodes=tuple(nodes))


def episode(
    name: str, value: float = 1.0, *trajectories: Trajectory, task: str = "t", **fields: object
) -> Episode:
    """A collected episode, right when its value is above one half."""
    parts = fields.pop("parts", {})
    steps = fields.pop("steps", ())
    prompt = fields.pop("prompt", f"prompt of {task}")
    return Episode(
        id=name,
        task=Task(id=task, prompt=str(prompt)),
        trajectories=trajectories or (replies(f"reply of {name}"),),
        score=Score(value=value, success=value > 0.5, source="s", parts=parts, steps=steps),  # type: ignore[arg-type]
        **{"bundle": "b", "purpose": "collect", "run": "r", "seed": 0, **fields},  # type: ignore[arg-type]
    )
