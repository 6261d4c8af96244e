"""From a file to a workflow: overrides, safe YAML, relative paths, the hash that a cycle keeps."""

import time
from pathlib import Path

import pytest
import tiny_workflow
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import MissingDependency, UnknownName, UsageError
from agentloop.records import Json
from agentloop.workflows.load import build, load, read_yaml
from agentloop.workflows.schema import PartSpec
from agentloop.workspace import Workspace


def space(root: Path) -> Workspace:
    return Workspace((root,))


def test_overrides_change_keys_before_the_check(tmp_path: Path) -> None:
    tiny_workflow.make(tmp_path)
    changes: dict[str, Json] = {"heldout.n": 5, "lanes.policy": None, "prices.m.prompt": 1}
    changes["prices.m.completion"] = 2
    spec = load("tiny", space(tmp_path), changes).spec
    assert spec.heldout.n == 5 and set(spec.lanes) == {"instructions", "skills"}
    assert spec.prices["m"].completion == 2.0
    with pytest.raises(UnknownName, match="did you mean `heldout`"):
        load("tiny", space(tmp_path), {"heldot.n": 5})
    with pytest.raises(UsageError, match=r"`title.x` does not name a place"):
        load("tiny", space(tmp_path), {"title.x": 5})


def test_relative_paths_start_at_the_folder(tmp_path: Path) -> None:
    folder = tiny_workflow.make(tmp_path)
    loaded = load("tiny", space(tmp_path))
    tasks = loaded.build(loaded.spec.tasks)
    assert tasks.path == str(folder / "tasks.jsonl")
    assert len(tasks.draw(99, split="heldout", seed=0)) == 40
    (folder / "own.py").write_text("class Plain:\n    def __init__(self, x):\n        self.x = x\n")
    made = build(PartSpec(use="./own.py:Plain", x=["./a", {"b": "./c"}]), folder)  # type: ignore[call-arg]
    assert made.x == [str(folder / "a"), {"b": str(folder / "c")}]
    with pytest.raises(UsageError, match="unexpected keyword argument 'y'"):
        build(PartSpec(use="./own.py:Plain", x=1, y=2), folder)  # type: ignore[call-arg]


def test_a_wrong_part_is_told(tmp_path: Path) -> None:
    def wrong(use: str, **fields: object) -> PartSpec:
        return PartSpec(use=use, **fields)  # type: ignore[arg-type]

    explore = "agentloop.lanes.collect:Explore"
    with pytest.raises(UnknownName, match=r"Explore`: `roundz`; did you mean `rounds`"):
        build(wrong(explore, roundz=1), tmp_path)
    with pytest.raises(UsageError, match=r"at `rounds`.*given: 'x'"):
        build(wrong(explore, rounds="x"), tmp_path)
    with pytest.raises(UsageError, match="is not a part"):
        build(wrong("agentloop:__version__"), tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        build(wrong("./none.py:X"), tmp_path)


def test_what_it_requires_is_asked_for_before_anything_runs(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML + "requires: [no_such_package.inner]\n"
    tiny_workflow.make(tmp_path, yaml=yaml)
    loaded = load("tiny", space(tmp_path))
    with pytest.raises(MissingDependency, match="pip install no_such_package"):
        loaded.check()


@pytest.mark.parametrize("change", ["workflow.yaml", "parts.py", "tasks.jsonl"])
def test_the_hash_changes_with_what_a_cycle_must_not_change(tmp_path: Path, change: str) -> None:
    folder = tiny_workflow.make(tmp_path)
    first = load("tiny", space(tmp_path)).digest()
    assert load("tiny", space(tmp_path)).digest() == first
    (folder / "notes.md").write_text("no matter")
    assert load("tiny", space(tmp_path)).digest() == first
    text = (folder / change).read_text()
    old = {"workflow.yaml": "Solve the task", "parts.py": "A model", "tasks.jsonl": "products"}
    (folder / change).write_text(text.replace(old[change], "Other words"))
    assert load("tiny", space(tmp_path)).digest() != first


@pytest.mark.parametrize("name", ["./data/rows.jsonl", "rows.jsonl", "{root}/far/rows.jsonl"])
def test_the_hash_changes_with_tasks_and_code_that_lie_elsewhere(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = name.format(root=tmp_path)
    yaml = tiny_workflow.YAML.replace("./tasks.jsonl", named, 1)
    yaml = yaml.replace("agentloop.rewards.verify:Exact", "../shared/grade.py:Exact")
    assert named in yaml and "../shared" in yaml
    folder = tiny_workflow.make(tmp_path, yaml=yaml)
    rows = folder / named if named.startswith("./") else Path(named)
    code = folder.parent / "shared" / "grade.py"
    for path, text in ((rows, '{"prompt": "a"}'), (code, "a = 1")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    first = load("tiny", space(tmp_path)).digest()
    rows.write_text('{"prompt": "b"}')
    second = load("tiny", space(tmp_path)).digest()
    assert second != first
    code.write_text("a = 2")
    assert load("tiny", space(tmp_path)).digest() not in (first, second)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2", r"line 2 is not valid YAML"),
        ("a: b: c", r"line 1 is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", r"line 1 is not valid YAML"),
        ("a: 2024-99-99", "not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("a: &x [1]\nb: *x", r"line 2 uses a YAML alias"),
        ("[" * 5000, "nested deeper than 20"),
        ("- " * 5000, "nested deeper than 20"),
        ("x" * 300_000, "300000 characters"),
    ],
)
def test_yaml_that_is_wrong_or_a_trap(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "workflow.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UsageError, match=told):
        read_yaml(path)
    assert time.process_time() - began < 1.0


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "workflow.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path)


@given(st.text(alphabet=st.sampled_from("a1:- []{},&*!|>'\"#%@`\n\t\\?~"), max_size=60))
def test_any_text_is_data_or_one_sentence(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workflow.yaml"
        path.write_text(text)
        try:
            read_yaml(path)
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_wrong_key_of_a_part_inside_a_part_names_the_nearest(tmp_path: Path) -> None:
    tiny_workflow.make(tmp_path)
    gate: Json = {"use": "agentloop.gates.sequential:Sequential", "guards": {"lenght": 2}}
    with pytest.raises(UnknownName, match="did you mean `length`"):
        load("tiny", space(tmp_path), {"gate": gate}).check()
