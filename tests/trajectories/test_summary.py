"""The counts of a run's summary: drift, and groups of samples that are not whole."""

from __future__ import annotations

from agentloop.records import Episode, Failure, Reason, Task, Trajectory
from agentloop.trajectories.summary import summarise


def episode(
    task: str, sample: int, reason: Reason | None = None, *drifts: tuple[int, int, int]
) -> Episode:
    return Episode(
        id=f"{task}{sample}{reason}",
        task=Task(id=task, prompt="p"),
        bundle="b",
        purpose="train",
        run="r",
        seed=0,
        sample=sample,
        failure=Failure(reason=reason, detail="") if reason else None,
        trajectories=tuple(Trajectory(clean=c, realigned=r, drift=f) for c, r, f in drifts),
    )


def test_drift_adds_up_over_trajectories() -> None:
    first = episode("a", 0, None, (5, 1, 0), (2, 0, 1))
    told = summarise([first, episode("b", 0, None, (1, 0, 0))])
    assert (told.drift.clean, told.drift.realigned, told.drift.forked) == (8, 1, 1)
    assert str(told.drift) == "8 clean, 1 realigned, 1 forked"


def test_a_group_is_partial_when_the_infrastructure_took_some_of_it() -> None:
    whole = [episode("whole", n, "turn_limit" if n else None) for n in range(4)]
    partial = [episode("partial", n, "model_error" if n == 2 else None) for n in range(4)]
    lost = [episode("lost", n, "model_timeout") for n in range(4)]
    assert summarise(whole + partial + lost).partial_groups == 1
    mended = [*partial, episode("partial", 2)]
    assert summarise(mended).partial_groups == 0
    assert summarise([]).partial_groups == 0
