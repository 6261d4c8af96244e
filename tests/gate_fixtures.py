"""Episodes for tests of gates: tasks by number, one mark each."""

from __future__ import annotations

from agentloop.records import Episode, Failure, Message, Node, Score, Task, Trajectory, Usage

RIGHT, WRONG, FAILED = "1", "0", "x"


def numbered(n: int) -> list[Task]:
    """Tasks t0, t1, ..."""
    return [Task(id=f"t{i}", prompt="?") for i in range(n)]


def episode(task: Task, bundle: str, mark: str, tokens: int = 100) -> Episode:
    """Right, wrong or failed."""
    failed = mark == FAILED
    return Episode(
        id=f"{bundle}-{task.id}", task=task, bundle=bundle, purpose="eval", run="r", seed=0,
        failure=Failure(reason="model_timeout", detail="") if failed else None,
        score=None if failed else Score(value=float(mark), success=mark == RIGHT, source="s"),
        usage=Usage(prompt_tokens=tokens),
    )  # fmt: skip


def spoken(
    task: Task, success: bool, text: str, *, answer: str | None = None, tokens: int = 50,
    logprob: float = -0.5, seconds: float = 1.0,
) -> Episode:  # fmt: skip
    """One reply of a model."""
    nodes = (
        Node(parent=None, message=Message(role="user", content=task.prompt)),
        Node(parent=0, message=Message(role="assistant", content=text), sampled=True,
             token_ids=(1,), logprobs=(logprob,)),
    )  # fmt: skip
    return Episode(
        id=f"e-{task.id}-{text[:20]}", task=task, bundle="b", purpose="eval", run="r", seed=0,
        answer=text if answer is None else answer, trajectories=(Trajectory(nodes=nodes),),
        score=Score(value=float(success), success=success, source="s"), seconds=seconds,
        usage=Usage(prompt_tokens=100, completion_tokens=tokens),
    )  # fmt: skip
