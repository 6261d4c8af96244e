"""Procedural tasks: repeatable, disjoint splits, JSON-clean data, and the library's own grader."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import MissingDependency, UnknownName, UsageError
from agentloop.ports import Tasks
from agentloop.records import Task
from agentloop.tasks import reasoning_gym as subject
from agentloop.tasks.reasoning_gym import ReasoningGym, freeze, score_answer, thaw
from agentloop.trajectories.codec import decode, encode

# Some of the library's dependencies warn on import; that is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ["gcd", "lcm", "count_bits", "products", "letter_counting", "chain_sum"]
TINY = {"gcd": {"min_value": 1, "max_value": 6}}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        subject._library("reasoning_gym")
    except MissingDependency as error:
        pytest.skip(str(error))


def test_a_draw_is_repeatable_balanced_and_without_repeats() -> None:
    source = ReasoningGym(families=QUICK)
    tasks = source.draw(20, split="train", seed=5)
    assert isinstance(source, Tasks)
    assert tasks == source.draw(20, split="train", seed=5)
    assert tasks[:7] == source.draw(7, split="train", seed=5)
    assert [task.family for task in tasks[:7]] == [*QUICK, "gcd"]
    assert len({task.id for task in tasks}) == len({task.prompt for task in tasks}) == 20
    assert {t.id for t in tasks} != {t.id for t in source.draw(20, split="train", seed=6)}


@settings(max_examples=10, deadline=None)
@given(st.integers(), st.integers())
def test_no_heldout_question_is_ever_in_train(train_seed: int, heldout_seed: int) -> None:
    source = ReasoningGym(families=TINY)  # 36 questions in all: seeds collide at once
    train = {task.prompt for task in source.draw(40, split="train", seed=train_seed)}
    heldout = {task.prompt for task in source.draw(40, split="heldout", seed=heldout_seed)}
    assert train and heldout
    assert not train & heldout


def test_a_used_up_family_gives_fewer_and_leaves_the_others_alone() -> None:
    source = ReasoningGym(families={**TINY, "lcm": {}})
    tasks = source.draw(200, split="heldout", seed=0)
    assert len(tasks) == 200
    assert sum(task.family == "gcd" for task in tasks) < 36


def test_settings_reach_the_generator_and_the_grader() -> None:
    source = ReasoningGym(families={"puzzle24": {"min_value": 1, "max_value": 5}})
    (task,) = source.draw(1, split="train", seed=0)
    assert task.data["settings"] == {"min_value": 1, "max_value": 5}
    assert score_answer(task, str(task.expected)) >= 0.99
    assert score_answer(task, "6*4*1*1") < 0.5  # makes 24, but of numbers that are too large


def test_common_and_evaluating_families_know_their_own_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # only the check reads it
    _check_families({*QUICK, *subject.EVALUATING, "graph_color", "knights_knaves"})


@pytest.mark.slow
def test_every_family_survives_storage_and_knows_its_own_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    slow = {"acre", "composite", "knight_swap", "zebra_puzzles", "word_ladder", "arc_agi", "rearc"}
    known = set(subject._library("reasoning_gym.factory").DATASETS)
    assert known >= subject.EVALUATING | subject._HASH_ORDERED | slow
    _check_families(known - slow)


def _check_families(families: set[str]) -> None:
    wrong, lenient = [], []
    for family in sorted(families):
        (task,) = ReasoningGym(families=[family]).draw(1, split="train", seed=1)
        stored = decode(Task, encode(task))
        assert stored == task
        known_answer = isinstance(task.expected, str) and "Integral(" not in task.expected
        if known_answer and score_answer(stored, str(task.expected)) < 0.99:
            wrong.append(family)
        with contextlib.suppress(Exception):  # some graders raise on what they cannot parse
            if score_answer(stored, "certainly not this") >= 0.99:
                lenient.append(family)
    assert wrong == []
    assert set(lenient) <= {"game_of_life_halting"}  # there, all that is not "True" means "False"


@pytest.mark.slow
def test_families_whose_grader_compares_tuples() -> None:
    for task in ReasoningGym(families=["arc_agi", "rearc"]).draw(2, split="train", seed=0):
        assert score_answer(decode(Task, encode(task)), str(task.expected)) >= 0.99


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch /tmp/agentloop-pwned')",
        "open('/tmp/agentloop-pwned', 'w')",
        "().__class__.__base__.__subclasses__()",
        "[x for x in (1).__class__.__mro__]",
        "(lambda: 1)()",
        "f\"{open('/tmp/agentloop-pwned','w')}\"",
        "eval('1')",
        "sympify('1')",
        "Integral(x**2, x)",  # the question itself: harmless to run, but no answer
        "log(x, evaluate=open('/tmp/agentloop-pwned', 'w'))",
        "open('/tmp/agentloop-pwned', 'w')!",
        "9 9 (open('/tmp/agentloop-pwned', 'w'))",
    ],
)
def test_an_answer_is_never_run_as_a_program(answer: str) -> None:
    assert not subject._harmless(answer)
    (task,) = ReasoningGym(families=["countdown"]).draw(1, split="train", seed=0)
    assert task.data["isolate"] is True
    assert score_answer(task, answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["1 + 2*(3 - 4)/5", "x**3/3 + sin(x) + C", "['a', 'b']", "[[0, 1], [1, 0]]", "ABCD",
               "_ Q _ _\n_ _ _ Q", "1 2 3 6 9"],
)  # fmt: skip
def test_ordinary_answers_are_harmless(answer: str) -> None:
    assert subject._harmless(answer)


def test_errors_name_the_family_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(families: object) -> None:
        ReasoningGym(families=families).draw(1, split="train", seed=0)  # type: ignore[arg-type]

    with pytest.raises(UnknownName, match="did you mean `gcd`"):
        draw(["gdc"])
    with pytest.raises(UnknownName, match=r"setting of the family `gcd` `max_valu`.*`max_value`"):
        draw({"gcd": {"max_valu": 3}})
    with pytest.raises(UnknownName, match="`seed`"):
        draw({"gcd": {"seed": 3}})
    with pytest.raises(UsageError, match="`gcd` refused its settings: min_value must be positive"):
        draw({"gcd": {"min_value": -1}})
    with pytest.raises(UsageError, match="`gcd` refused its settings"):
        draw({"gcd": {"min_value": "many"}})
    with pytest.raises(UsageError, match="empty"):
        draw([])
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UsageError, match=r"`ransom_note` .*PYTHONHASHSEED=0"):
        draw(["ransom_note"])


@pytest.mark.skipif(importlib.util.find_spec("pycosat") is not None, reason="pycosat is here")
def test_the_one_family_that_needs_a_compiler_says_so_and_no_stand_in_stays() -> None:
    with pytest.raises(UsageError, match="`zebra_puzzles` needs `pycosat`"):
        ReasoningGym(families=["zebra_puzzles"]).draw(1, split="train", seed=0)
    assert "pycosat" not in sys.modules


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent, says in (
        ("reasoning_gym", "`reasoning-gym` is"),
        ("cellpylib", "`cellpylib` .needed"),
    ):

        def missing(name: str, absent: str = absent) -> None:
            raise ModuleNotFoundError(f"No module named {absent}", name=absent)

        with monkeypatch.context() as patch:
            patch.setattr(subject.importlib, "import_module", missing)
            with pytest.raises(MissingDependency, match=f"{says}.*agentloop setup local"):
                ReasoningGym(families=["gcd"]).draw(1, split="train", seed=0)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(
        st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.just("$tuple"), inner
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(_values)
def test_freeze_and_thaw_are_inverse_through_json(value: object) -> None:
    assert thaw(json.loads(json.dumps(freeze(value)))) == value


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="a set"):
        freeze({1, 2})
