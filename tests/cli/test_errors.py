"""Bad input gets one sentence that names cause and next step, the right code, an unharmed store."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.store.archive import Archive

Refused = Callable[..., str]


def edited(root: Path, old: str, new: str) -> str:
    assert old in tiny_workflow.YAML
    return str(tiny_workflow.make(root, yaml=tiny_workflow.YAML.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("tools:", "tolls:", ["`tolls`", "did you mean `tools`?", "tiny/workflow.yaml"]),
        ("turns: 4", "turn: 4", ["`limits`", "`turn`", "did you mean `turns`?"]),
        ("  skills:", "  skils:", ["`lanes`", "`skils`", "did you mean `skills`?"]),
        ("rounds: 2", "round: 2", ["Explore", "`round`", "did you mean `rounds`?"]),
        ("turns: 4", "turns: -1", ["`limits.turns`", "above 0"]),
        ("turns: 4", "turns: four", ["`limits.turns`", "'four'"]),
        ("reward:", "#", ["lacks the key `reward`", "add it"]),
        ("verify:Exact", "verify:Exakt", ["`Exakt`", "did you mean `Exact`?"]),
        ("rewards.verify:", "rewards.verfy:", ["no module `agentloop.rewards.verfy`"]),
        ("reward: agentloop.rewards.verify:Exact", "reward: 3", ["`reward`", "{use: "]),
        ("title: Tiny", "title: [", ["line 3", "not valid YAML"]),
        ("title: Tiny", "title: &a x\nclaim: *a", ["line 2", "alias"]),
        ("title: Tiny", "requires: [nosuchthing]\ntitle: Tiny", ["pip install nosuchthing"]),
        ("title: Tiny", "title: \x07", ["not valid YAML"]),
    ],
)
def test_a_wrong_workflow(
    tmp_path: Path, refused: Refused, old: str, new: str, told: list[str]
) -> None:
    home = tmp_path / "home"
    error = refused("run", edited(tmp_path, old, new), "--home", str(home))
    assert all(part in error for part in told), error
    assert not home.exists()


def test_a_workflow_that_would_cost_much_to_parse(tmp_path: Path, refused: Refused) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 8)}]\n" for n in range(12)
    )
    began = time.process_time()
    for number, (text, told) in enumerate(
        [
            ("tasks: " + "[" * 5000, "nested deeper"),
            ("tasks: " + "{a: " * 5000, "nested deeper"),
            (bomb, "alias"),
            ("x" * 300_000, "300000 characters"),
        ]
    ):
        folder = tiny_workflow.make(tmp_path / str(number), yaml=text)
        assert told in refused("run", str(folder))
    assert time.process_time() - began < 3


def test_names_that_do_not_exist(tiny: str, cycled: tuple[str, str], refused: Refused) -> None:
    workflow, home = cycled
    assert "did you mean `quickstart`?" in refused("run", "quickstrat")
    assert "did you mean `prompt`?" in refused("run", tiny, "--set", "prices.x.promt=1")
    error = refused("eval", workflow, "--bundle", "bundle-0123456789abcdef", "--home", home)
    assert "unknown bundle `bundle-0123456789abcdef`" in error
    assert "inspect trajectories" in refused("inspect", "trajectories", "nope", "--home", home)
    assert "unknown skill `nope`" in refused("inspect", "skills", "nope", "--home", home)
    assert "unknown cycle `nope`" in refused("inspect", "decisions", "nope", "--home", home)
    with Archive(Path(home)) as archive:
        assert archive.verify()["ok"]


def test_options_that_mean_nothing(tiny: str, refused: Refused) -> None:
    assert "scripted | embedded" in refused("run", tiny, "--model", "nonsense")
    assert "key=value" in refused("run", tiny, "--set", "nonsense")
    assert "exclude each other" in refused("cycle", tiny, "--resume", "--again")
    assert "unit, toy, lm" in refused("check", tiny, "--tier", "nonsense")
    assert "no checks" in refused("check", tiny)
    assert "not an interval" in refused("schedule", tiny, "--every", "soon")
    assert "episode, skill, instruction" in refused("search", "x", "--kind", "nonsense")
    assert "agentloop setup local" in refused("setup", "nonsense")


def test_an_unknown_option_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["run", "x", "--nonsense"], ["nonsense"], ["run", "x", "--n", "0"]):
        assert run(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_missing_model(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("AGENTLOOP_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "home"
    error = refused("run", tiny, "--model", "embedded", "--home", str(home))
    assert "agentloop setup local" in error and not home.exists()
    error = refused("run", tiny, "--model", f"embedded:{tmp_path}", "--home", str(home))
    assert "config.json" in error and not home.exists()
    assert "OPENAI_BASE_URL" in refused("run", tiny, "--model", "endpoint")
    assert "OPENAI_API_KEY" in refused("run", tiny, "--model", "openai:gpt-x")


def test_a_missing_extra(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    import importlib.metadata

    found = importlib.metadata.version

    def absent(name: str) -> str:
        if name == "litellm":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr("agentloop.models.litellm.version", absent)
    error = refused("run", tiny, "--model", "litellm:openai/x")
    assert 'pip install "agentloop[api]"' in error


def test_a_missing_task_generator(
    tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    error = refused("run", tiny, "--tasks", "reasoning_gym:gcd")
    assert "agentloop setup local" in error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a"}\nnot json\n', "line 2"),
        ('{"expected": 1}\n', "line 1"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', "line 2"),
        ("", "no train task"),
    ],
)
def test_a_bad_task_file(
    tiny: str, home: Path, tmp_path: Path, refused: Refused, text: str, told: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    error = refused("run", tiny, "--tasks", str(file))
    assert told in error and "mine.jsonl" in error
    with Archive(home) as archive:
        assert archive.verify()["ok"] and archive.episodes() == []


def test_a_missing_task_file(tiny: str, home: Path, refused: Refused) -> None:
    assert "does not exist" in refused("run", tiny, "--tasks", "nowhere.jsonl")


def test_an_unusable_home(tiny: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("in the way")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "--home DIR" in refused("run", tiny, "--home", str(home))
        assert "--home DIR" in refused("inspect", "skills", "--home", str(home))
    assert (tmp_path / "file").read_text() == "in the way"
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        assert "--home DIR" in refused("run", tiny, "--home", str(locked))


def test_reading_makes_no_home(tmp_path: Path, tiny: str, refused: Refused) -> None:
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    for home in (nowhere, empty):
        for command in (
            ["inspect", "bundles"], ["store", "verify"], ["store", "reindex"], ["search", "x"],
            ["rollback", tiny], ["skills", "export", "x", str(tmp_path / "out")],
        ):  # fmt: skip
            assert "--home DIR" in refused(*command, "--home", str(home))
    assert not nowhere.exists() and list(empty.iterdir()) == []


def test_nothing_to_roll_back(tiny: str, home: Path, refused: Refused) -> None:
    assert run(["run", tiny, "--n", "1", "--json"]) == 0
    assert "had no bundle before" in refused("rollback", tiny)


def test_a_grader_that_raises_is_no_score(
    tmp_path: Path, home: Path, data: Callable[..., dict[str, object]]
) -> None:
    workflow = edited(
        tmp_path, "reward: agentloop.rewards.verify:Exact",
        "reward: {use: agentloop.rewards.function:Function, grade: ./grader.py:grade}",
    )  # fmt: skip
    (Path(workflow) / "grader.py").write_text(
        "def grade(answer, task):\n    if task.id.endswith('1'):\n        raise KeyError('lost')\n"
        "    return 1.0\n"
    )
    told = data("run", workflow, "--n", "24")
    assert told["by_reason"] == {"grader_error": told["failed"]} and told["failed"]
    assert told["succeeded"] == 24 - int(str(told["failed"]))


def test_a_budget_keeps_what_was_finished(tiny: str, home: Path, refused: Refused) -> None:
    limits = ("--set", "budget.tokens=200", "--set", "concurrency=1", "--n", "20")
    assert "budget of 200 tokens" in refused("run", tiny, *limits, code=3)
    with Archive(home) as archive:
        finished = [one for one in archive.episodes() if one.failure is None]
        assert 0 < len(finished) < 20 and all(one.score is not None for one in finished)
    assert "10 tokens" in refused("cycle", tiny, "--set", "budget.tokens=10", code=3)


def test_an_interrupt(tmp_path: Path, home: Path, refused: Refused) -> None:
    parts = tiny_workflow.PARTS.replace("    system =", "    raise KeyboardInterrupt\n    system =")
    workflow = str(tiny_workflow.make(tmp_path, parts=parts))
    assert "nothing acknowledged is lost" in refused("run", workflow, code=130)
    with Archive(home) as archive:
        assert archive.verify()["ok"]


FULL_DISK = """
import resource, sys
from agentloop.cli import run
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(run({arguments}))
"""


@pytest.mark.integration
def test_a_full_disk_leaves_a_sound_store(tiny: str, home: Path) -> None:
    """A limit on the size of files stands for the full disk (Python ignores SIGXFSZ)."""
    assert run(["run", tiny, "--n", "4", "--json"]) == 0
    with Archive(home) as archive:
        before = archive.verify()
    limit = (home / "log.db").stat().st_size + 20_000
    code = FULL_DISK.format(limit=limit, arguments=["cycle", tiny, "--home", str(home)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "error: " in done.stderr
    with Archive(home) as archive:
        after = archive.verify()
    assert after["ok"] and after["rows"] >= before["rows"]
    assert run(["cycle", tiny, "--home", str(home), "--resume", "--json"]) == 0
