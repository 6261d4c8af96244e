"""Homes that earlier formats wrote: they open, verify, say the same and replay the same."""

import json
import tarfile
from pathlib import Path

import golden_home
import pytest

from agentloop.cli import run
from agentloop.store.archive import Archive
from agentloop.store.migrations import VERSION

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.tar.gz"))


def test_there_is_one_of_the_present_format() -> None:
    assert f"v{VERSION}" in {path.name.partition(".")[0] for path in FILES}
    assert all(path.stat().st_size < 100_000 for path in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_golden_home_is_what_it_was(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(file) as packed:
        packed.extractall(tmp_path / "golden", filter="data")
    home = tmp_path / "home"
    assert run(["store", "restore", str(tmp_path / "golden" / "home"), "--home", str(home)]) == 0
    want = json.loads((tmp_path / "golden" / "state.json").read_text())
    assert golden_home.state(home) == want
    assert run(["store", "verify", "--home", str(home)]) == 0
    with Archive(home) as archive:
        assert archive.reindex() > 0
        names = {one.run for one in archive.episodes()}
    capsys.readouterr()
    workflow = str(tmp_path / "golden" / "workflows" / "tiny")
    for name in names:
        assert run(["runs", "replay", name, "--workflow", workflow, "--home", str(home)]) == 0
        assert "different" not in capsys.readouterr().out
    assert golden_home.state(home) == want, "reading changed it"
