"""The exporter is the last door before weights: what holds a secret does not pass it."""

from dataclasses import replace
from pathlib import Path

import pytest

from agentloop.datasets.manifest import freeze
from agentloop.datasets.rows import sft_rows, unusable, why_unusable
from agentloop.datasets.select import trainable
from agentloop.errors import UsageError
from agentloop.records import Episode, Message, Node, Row, Task, ToolCall, Trajectory
from agentloop.trajectories.redact import Redactor

KEY = "AKIA" + "Q7R2" * 4
PASSWORD = "plain-words-only"
REDACT = Redactor({"THE_PASSWORD": PASSWORD})


def trajectory(reply: str, **fields: object) -> Trajectory:
    asked = Message(role="user", content="go on")
    answer = Message(role="assistant", content=reply, **fields)  # type: ignore[arg-type]
    return Trajectory(
        nodes=(
            Node(parent=None, message=asked, token_ids=(1, 2)),
            Node(parent=0, message=answer, token_ids=(3, 4), sampled=True, logprobs=(-0.1, -0.2)),
        )
    )


def episode(*trajectories: Trajectory) -> Episode:
    return Episode(
        id="ep-1", task=Task(id="t", prompt="go on"), bundle="b", purpose="collect", run="r",
        seed=0, trajectories=trajectories,
    )  # fmt: skip


GOOD = trajectory("fine")
CALL = ToolCall(id="c", name="login", arguments={"password": PASSWORD})


@pytest.mark.parametrize(
    "bad",
    [
        trajectory(f"use {KEY}"),
        trajectory(f"use {PASSWORD}"),
        trajectory("", tool_calls=(CALL,)),
        replace(GOOD, redacted=True),
        replace(trajectory("fine"), nodes=(replace(GOOD.nodes[0], message=Message(
            role="user", content=f"it is {PASSWORD}")), GOOD.nodes[1])),
    ],
)  # fmt: skip
def test_a_trajectory_with_a_secret_makes_no_row_and_its_neighbour_does(bad: Trajectory) -> None:
    both = [episode(bad, GOOD)]
    assert [row.segments for row in sft_rows(both, system="", redact=REDACT)] == [((3, 4),)]
    assert unusable(both, redact=REDACT) == {"redacted": 1}
    assert why_unusable(bad, REDACT) == "redacted"


def test_what_the_log_marked_is_not_selected() -> None:
    marked = episode(replace(GOOD, redacted=True))
    assert trainable([marked, episode(GOOD)]) == [episode(GOOD)]


def test_a_secret_in_the_system_text_or_the_spec_freezes_nothing(tmp_path: Path) -> None:
    rows = sft_rows([episode(GOOD)], system=f"The database password is {PASSWORD}.", redact=REDACT)
    assert isinstance(rows[0], Row)
    with pytest.raises(UsageError, match=r"`ep-1`\) holds what looks like a secret"):
        freeze(rows, {}, tmp_path, redact=REDACT)
    fine = sft_rows([episode(GOOD)], system="", redact=REDACT)
    with pytest.raises(UsageError, match="holds what looks like a secret"):
        freeze(fine, {"note": f"made with {KEY}"}, tmp_path, redact=REDACT)
    assert list(tmp_path.iterdir()) == []
    assert freeze(fine, {"note": "made well"}, tmp_path, redact=REDACT).rows == 1


def test_keys_of_the_environment_are_known_to_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATER_SET_TOKEN", PASSWORD)
    assert sft_rows([episode(trajectory(f"use {PASSWORD}"))], system="") == []
    with pytest.raises(UsageError):
        freeze(sft_rows([episode(GOOD)], system=PASSWORD), {}, tmp_path)
