"""500 secrets pass through a home; not one of them is in any of its files.

A scripted model and its tasks carry them in prompts, replies, code, tool output, exceptions, error
texts and base64, through the public commands. Half of them are values of the environment and stand
bare, half are known by their shape alone. The oracle compares bytes, of files as they are and of
the log's compressed bodies; a file beside the home shows that the secrets really passed.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tiny_workflow
from secret_kinds import forms, secrets

from agentloop.datasets.rows import unusable
from agentloop.store.archive import Archive
from agentloop.trajectories.codec import to_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PER_TASK, TASKS, HARMLESS = 5, 100, 30
START = 12  # bytes by which a form is looked up; each is longer
SECRETS = secrets(PER_TASK * TASKS, seed=7)

PARTS = '''\
"""A model that meets five secrets a task: in the prompt, and by its own words and deeds."""

import base64
import json
import os
import re
from pathlib import Path

from agentloop.errors import ModelError

TEXTS = json.loads(Path(os.environ["TEXTS_FILE"]).read_text())


def code(text, verb):
    half = len(text) // 2
    return f"```python\\na = {text[:half]!r}\\nb = {text[half:]!r}\\n{verb}(a + b)\\n```"


def replies(request):
    prompt = next(m.content for m in reversed(request.messages) if m.content.startswith("Task "))
    with open(os.environ["SEEN_FILE"], "a") as file:
        file.write(json.dumps([m.content for m in request.messages]) + "\\n")
    number, a, b = map(int, re.findall(r"\\d+", prompt)[:3])
    turn = sum(m.role == "assistant" and m.name != "example" for m in request.messages)
    answer = f"Answer: {a * b}"
    if number >= len(TEXTS):
        return answer if turn else f"```python\\nprint({a} * {b})\\n```"
    _, said, printed, raised, sent = TEXTS[number]
    if turn == 0:
        return f"I shall use {said}\\n" + code(printed, "print")
    if turn == 1 and number % 5 == 0:
        raise ModelError(f"the endpoint answered 401 to {raised}")
    if turn == 1:
        return code(raised, "raise ValueError")
    return "As it was sent: " + base64.b64encode(sent.encode()).decode() + "\\n" + answer
'''
YAML = """\
title: Secrets
model: scripted
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
instruction: Solve the task.
tools: [python]
limits: {turns: 4, tokens: 100000, seconds: 60}
reward: agentloop.rewards.verify:Exact
collect: {use: agentloop.lanes.collect:Explore, rounds: 2, tasks: 130, samples: 1, practice: 20}
lanes:
  skills: agentloop.lanes.skills:InduceSkills
  policy: agentloop.lanes.policy:RejectionSampling
heldout: {n: 12, lanes: 12}
scripted:
  tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
  replies: ./parts.py:replies
"""


def texts() -> list[list[str]]:
    """Five a task: bare where the environment knows the secret, else with what tells it."""
    told = [secret if at % 2 else framed for at, (_, secret, framed) in enumerate(SECRETS)]
    return [told[at : at + PER_TASK] for at in range(0, len(told), PER_TASK)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home after two runs, one of them cut off, a cycle, a reindex, and exports into it."""
    root = tmp_path_factory.mktemp("secrets")
    folder = tiny_workflow.make(root, yaml=YAML, parts=PARTS, name="secret")
    rows = []
    for number in range(TASKS + HARMLESS + 24):
        a, b = number + 3, 2 * number + 5
        prompt = f"Task {number}: multiply {a} by {b}."
        if number < TASKS:
            prompt += f" You may need {texts()[number][0]}"
        split = "train" if number < TASKS + HARMLESS else "heldout"
        rows.append({"id": f"t-{number}", "prompt": prompt, "expected": str(a * b), "split": split})
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "texts.json").write_text(json.dumps(texts()))
    known = {f"SERVICE_{at}_TOKEN": one[1] for at, one in enumerate(SECRETS) if at % 2}
    files = {"TEXTS_FILE": str(root / "texts.json"), "SEEN_FILE": str(root / "seen.jsonl")}
    place = root / "home"

    def call(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agentloop", *arguments, "--home", str(place), "--json"],
            capture_output=True, text=True, env={**os.environ, **known, **files}, timeout=240,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout

    run = ("run", str(folder), "--n", str(TASKS + HARMLESS))
    tokens = json.loads(call(*run))["cost"]["tokens"]
    # One that its budget cuts off keeps the steps of its rollouts.
    call(*run, "--set", f"budget.tokens={tokens * 9 // 10}", code=3)
    call("cycle", str(folder))
    call("store", "reindex")
    (place / "exports").mkdir()
    (place / "exports" / "found.json").write_text(call("search", "multiply", "-k", "50"))
    with Archive(place) as archive:
        failed = [one.id for one in archive.episodes() if one.failure is not None]
        some = [*failed[:5], *(one.id for one in archive.episodes()[:5])]
    for number, name in enumerate(some):
        shown = call("inspect", "trajectories", name)
        (place / "exports" / f"episode-{number}.json").write_text(shown)
    return place


def unwanted() -> set[bytes]:
    """Every form of every secret, and the base64 of the texts that tell them."""
    found = {form for _, secret, framed in SECRETS for form in forms(secret, framed)}
    found |= {base64.b64encode(one.encode()) for five in texts() for one in five}
    assert min(map(len, found)) >= START
    return found


def occurrences(documents: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Every place where a form stands, by its first bytes and then the whole."""
    starts: dict[bytes, list[bytes]] = {}
    for form in unwanted():
        starts.setdefault(form[:START], []).append(form)
    return [
        (name, form)
        for name, data in documents
        for at in range(len(data) - START + 1)
        for form in starts.get(data[at : at + START], ())
        if data.startswith(form, at)
    ]


def files(home: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(home.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(home)), path.read_bytes()


def bodies(home: Path) -> Iterator[tuple[str, bytes]]:
    """The log's entries as they are before they are compressed."""
    with Archive(home) as archive:
        for entry in archive.read():
            yield entry.key, json.dumps(entry.body, ensure_ascii=False).encode()


def test_the_secrets_passed(home: Path) -> None:
    """Else the tests below would hold for an empty home. The oracle finds what is there."""
    seen = [json.loads(line) for line in (home.parent / "seen.jsonl").read_text().splitlines()]
    read = "\n".join(text for contents in seen for text in contents)
    for number, (asked, said, printed, raised, _) in enumerate(texts()):
        assert asked in read and said in read and printed in read, number
        # of an exception the model is shown the last line
        assert number % 5 == 0 or raised.splitlines()[-1] in read, number
    found = occurrences([("seen.jsonl", (home.parent / "seen.jsonl").read_bytes())])
    assert len({form for _, form in found}) > 350
    with Archive(home) as archive:
        replaced = sum(b"[redacted:" in body for _, body in bodies(home))
        ended = [one for one in archive.episodes() if one.failure is not None]
        failed = [one for one in ended if one.failure and one.failure.reason != "budget"]
    assert replaced > 2 * TASKS and len(failed) >= TASKS // 5
    assert all("[redacted:" in one.failure.detail for one in failed if one.failure is not None)


def test_no_file_has_one(home: Path) -> None:
    names = [name for name, _ in files(home)]
    assert "log.db" in names and len(names) > 10
    for part in ("index/", "datasets/", "checkpoints", "policies/", "exports/"):
        assert any(name.startswith(part) for name in names), part
    assert occurrences(files(home)) == []
    assert occurrences(bodies(home)) == []


def test_token_ids_of_no_secret_are_kept_or_trained_on(home: Path) -> None:
    with Archive(home) as archive:
        episodes = archive.episodes()
        calls = [(entry.key, archive.call(entry.key)) for entry in archive.read() if
                 entry.kind == "call"]  # fmt: skip
    tainted = [one for one in episodes if "[redacted:" in json.dumps(to_json(one))]
    harmless = [one for one in episodes if one not in tainted]
    assert len(tainted) >= TASKS and len(harmless) >= HARMLESS
    for episode in tainted:
        for trajectory in episode.trajectories:
            assert trajectory.redacted or not trajectory.nodes
            assert not any(node.token_ids or node.logprobs for node in trajectory.nodes)
    assert set(unusable(tainted)) <= {"redacted", "no_samples"}
    assert "redacted" not in unusable(harmless)
    ids = {one.id for one in tainted}
    for key, reply in calls:
        if reply is not None and key.rpartition("/")[0] in ids:
            assert reply.prompt_ids is None and reply.completion_ids is None
    rows = [json.loads(line) for path in home.glob("datasets/*/rows.jsonl")
            for line in path.read_text().splitlines()]  # fmt: skip
    assert rows and not ids & {row["episode"] for row in rows}
