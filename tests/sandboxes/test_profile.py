"""Sandbox profiles: limits are read exactly, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UnknownName, UsageError
from agentloop.sandboxes.profile import MAX_BYTES, Profile, open_sandbox, read_profile
from agentloop.workspace import Workspace


def test_a_profile_is_read(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text("backend: monty\nseconds: 1.5\n")
    assert read_profile(file) == Profile(backend="monty", seconds=1.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backend: monty\nsecond: 1", "did you mean `seconds`"),
        ("backend: podman", "backend"),
        ("backend: monty\nseconds: -1", "seconds"),
        ("backend: monty\nmemory_mb: lots", "memory_mb"),
        ("seconds: 1", "backend"),
        ("- a", "mapping"),
        ("", "mapping"),
        ("a: [", "YAML"),
        ("backend: !!python/object/apply:os.getcwd []", "YAML"),
        ("x: 2001-99-99", "YAML"),
        ("#" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_profile(file)


@given(data=st.binary(max_size=200))
def test_any_bytes_end_in_a_profile_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    try:
        read_profile(file)
    except UsageError as error:
        assert str(error)


def test_an_unknown_sandbox_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "sandboxes" / "monty").mkdir(parents=True)
    (tmp_path / "sandboxes" / "monty" / "profile.yaml").write_text("backend: monty")
    with pytest.raises(UnknownName, match="did you mean `monty`"):
        open_sandbox("montey", Workspace((tmp_path,)))
    with pytest.raises(UsageError, match="cannot be read"):
        read_profile(tmp_path / "none.yaml")
