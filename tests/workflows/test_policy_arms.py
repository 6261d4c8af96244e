"""Arms on the same rollouts: worked solutions the library accepts, arms that differ in learning
alone, a start that is lent once, replays that follow from the log, curves that are drawn."""

from __future__ import annotations

import asyncio
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from agentloop.checks.run import CheckRun
from agentloop.cli import run
from agentloop.datasets.manifest import load_rows
from agentloop.lanes.online import rounds_of
from agentloop.policies.registry import Policies
from agentloop.ports import silent
from agentloop.records import Bundle, Episode, Row, Task, TrainingJob, content_id
from agentloop.refs import load_file
from agentloop.store.archive import Archive
from agentloop.training import dry
from agentloop.trajectories.rows_file import NAME, lines_of, write_rows
from agentloop.workflows.assemble import alias_of
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows" / "policy_arms"
SPACE = Workspace((ROOT,))
LOADED = load(str(FOLDER), SPACE)


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    return load_file(FOLDER / "parts.py")


@pytest.fixture(scope="module")
def measures() -> ModuleType:
    return load_file(FOLDER / "measures.py")


def answered(task: Task, answer: str) -> Episode:
    return Episode(id="e", task=task, bundle="b", purpose="eval", run="r", seed=0, answer=answer)


# --- the task -------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning_gym is not installed")
def test_the_library_accepts_every_worked_solution_and_nothing_near_it(parts: ModuleType) -> None:
    tasks = LOADED.build(LOADED.spec.tasks).draw(60, split="heldout", seed=3)
    answers = [parts.solution(task.prompt).rpartition("Answer: ")[2] for task in tasks]
    near = [f"{int(real) + 1}+{imaginary}" for real, imaginary in (a.split("+") for a in answers)]
    reward = parts.Right()

    def values(given: list[str]) -> set[float]:
        episodes = [answered(*one) for one in zip(tasks, given, strict=True)]
        return {score.value for score in asyncio.run(reward.score(episodes))}

    assert values(answers) == {1.0}
    assert values(near) == {0.0}


def test_a_worked_solution_is_written_out_with_and_without_its_carry(parts: ModuleType) -> None:
    question = "Add the complex numbers: (2.0 + 7.0i) + (3.0 + 5.0i)"
    assert parts.solution(question) == "2+3=5\n7+5=12\nAnswer: 5+12i"
    assert parts.solution(question, carries=False) == "2+3=5\n7+5=2\nAnswer: 5+2i"


def test_a_worked_row_ends_the_turn(parts: ModuleType, tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0, parts.END: 1}, unk_token="?"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    task = Task(id="t", prompt="Add the complex numbers: (1.0 + 2.0i) + (3.0 + 4.0i)")
    ids = parts.encoder(tmp_path / "tokenizer.json")(parts.solution(task.prompt))
    row = parts.worked_row(task, "Calculate.", ids)
    assert row.segments == ((0, 1),) and row.sampled == (True,)
    assert [one.role for one in row.prompt] == ["system", "user"]


# --- arms -----------------------------------------------------------------------------------------


def test_arms_differ_in_learning_and_not_in_rollouts(measures: ModuleType) -> None:
    assert set(measures.ARMS) == {"rft", "grpo", "nft", "spear"}
    assert 1 <= len(measures.RATES) <= 3
    for arm in measures.ARMS:
        for trial, rollouts, n in ((measures.TRIAL, 128, 64), ({}, 512, 256)):
            made = load(str(FOLDER), SPACE, {**trial, **measures.keys(arm, measures.RATES[0])})
            made.check()
            assert made.build(made.spec.lanes["policy"]).rollouts == rollouts
            assert made.spec.heldout.n == n
    assert measures.TUNING not in {
        seed for check in LOADED.spec.checks if check.use == "./measures.py:arms"
        for seed in check.seeds
    }  # fmt: skip


def taught(home: Path) -> str:
    """A policy in a home of its own."""
    base = home / "scripted"
    base.mkdir(parents=True)
    rows = [Row(episode="w", prompt=(), segments=((1,), (2,)), sampled=(False, True))]
    write_rows(base, lines_of(rows), {})
    job = TrainingJob(
        method="dry", base=str(base), dataset=str(base / NAME), out=str(home / "job"), settings={},
        seed=0,
    )  # fmt: skip
    policy = Policies(home / "policies").admit(dry.train(job), base=job.base)
    with Archive(home) as archive:
        return archive.put(policy)


def test_the_start_is_lent_once(measures: ModuleType, tmp_path: Path) -> None:
    name = taught(tmp_path / "start")
    start = measures.Start(tmp_path / "start", name, 0.4)
    (tmp_path / "arm").mkdir()
    arm = CheckRun(LOADED, SPACE, tmp_path / "arm", 0, silent)
    for _ in range(2):
        measures.lend(start, arm)
        with Archive(arm.home) as archive:
            history = archive.alias_history(alias_of(LOADED.name))
            champion = archive.get(history[-1].bundle, Bundle)
        assert len(history) == 2
    mine = champion.policies["agent"]
    theirs = Policies(tmp_path / "start" / "policies").load(name)
    assert Policies(arm.home / "policies").load(mine).sha256 == theirs.sha256


def test_replays_follow_from_the_log_and_rise(tmp_path: Path, capsys: object) -> None:
    command = ["cycle", str(FOLDER), "--model", "scripted", "--home", str(tmp_path)]
    for key, value in {"ramp.steps": 3, "ramp.peak": 0.9, "drawn": 3}.items():
        command += ["--set", f"lanes.policy.{key}={value}"]
    assert run(command) == 0
    with Archive(tmp_path) as archive:
        rounds = rounds_of(archive, content_id("cycle", LOADED.name, 0, 0))
    assert [one.figures["rollouts"] for one in rounds] == [64.0] * 4
    rows = [load_rows(tmp_path / "datasets" / one.dataset / NAME) for one in rounds]
    again = [[row for row in each if row.weight < 1] for each in rows]
    assert [len(each) for each in again] == [0, 3, 3, 3]
    weights = [each[0].weight for each in again[1:]]
    assert weights == pytest.approx([0.225, 0.675, 0.9])
    assert {row.episode for row in again[1]} <= {row.episode for row in rows[0]}
    assert all(row.reward == 1.0 and max(row.advantages) > 0 for each in again for row in each)


def test_curves_are_drawn(measures: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    numbers = {
        f"{arm}.{name}": 0.4 for arm in measures.ARMS
        for name in ("before", "after", "solved@1", "solved@2")
    }  # fmt: skip
    measures.save(tmp_path / "curves.png", [numbers, numbers])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_whole_experiment_goes_on_where_it_was(
    measures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the scripted model, whose trainer changes nothing: each arm ends where it began."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "workflows" / "policy_arms"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "results.json"))
    text = (folder / "workflow.yaml").read_text(encoding="utf-8")
    (folder / "workflow.yaml").write_text(text.replace("model: embedded", "model: scripted"))
    space = Workspace((tmp_path, ROOT))
    loaded = load(str(folder), space)
    monkeypatch.setattr(measures, "RATES", (1e-4,))
    (tmp_path / "0").mkdir()
    one = CheckRun(loaded, space, tmp_path / "0", 0, silent)
    start = measures.beside_seed(one, measures.TUNING).home / "start"
    name = taught(start)
    with Archive(start) as archive:
        archive.add_step("start", "taught", {"policy": name, "rate": 0.4})
    first = asyncio.run(measures.arms(one))
    assert {first[f"{arm}.gain"] for arm in measures.ARMS} == {0.0}
    assert first["rollouts_most"] == 4 * 64 and first["best_p"] == 1.0
    assert (folder / "curves.png").is_file()
    monkeypatch.setattr("agentloop.checks.run.cycle", None)  # nothing is left to be run
    assert asyncio.run(measures.arms(one)) == first
