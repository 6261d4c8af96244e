"""What we write, others read: the public Agent Skills validator judges every folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skill_world import successes
from test_skill_document import NAMES, TEXTS

from agentloop.skills.document import Document, to_skill
from agentloop.skills.induce import induce
from agentloop.skills.library import export, export_zip, gather

skills_ref = pytest.importorskip("skills_ref")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", sorted((ROOT / "skills").iterdir()), ids=lambda p: p.name)
def test_carried_skills(folder: Path) -> None:
    assert skills_ref.validate(folder) == []


def test_an_induced_skill(tmp_path: Path) -> None:
    skill = induce(successes("gcd", 2))
    assert skill is not None and skills_ref.validate(export(skill, tmp_path).parent) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=NAMES,
    description=TEXTS.map(str.strip),
    compatibility=TEXTS | st.just(""),
    metadata=st.dictionaries(st.from_regex(r"[a-z.]{1,9}", fullmatch=True), TEXTS, max_size=2),
    body=TEXTS,
)
def test_any_skill_that_is_exported(tmp_path: Path, body: str, **fields: object) -> None:
    skill = to_skill(Document(body=body, **fields))  # type: ignore[arg-type]
    folder = export(skill, tmp_path / str(len(list(tmp_path.iterdir())))).parent
    assert skills_ref.validate(folder) == []
    assert skills_ref.read_properties(folder).description == skill.description
    packed = export_zip([skill], folder / "x.zip")
    assert gather(packed) == [skill]


def test_hyphens_that_end_the_front_matter_for_others(tmp_path: Path) -> None:
    skill = to_skill(Document(name="a", description="rules --- of a table", body="b\n---\nc"))
    folder = export(skill, tmp_path).parent
    assert skills_ref.validate(folder) == []
    assert skills_ref.read_properties(folder).description == "rules --- of a table"
