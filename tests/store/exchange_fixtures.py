"""What the tests of exported files share: rollouts in a log, and files as others write them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentloop.records import (
    Bundle,
    Completion,
    Episode,
    Instruction,
    Limits,
    Message,
    Sampling,
    Score,
    Setup,
    Skill,
    Task,
    Usage,
    attempt_of,
)
from agentloop.store.archive import Archive
from agentloop.store.exchange import export
from agentloop.store.portable import _digest

SCORE = Score(value=1.0, success=True, source="x:y")


def rollout(number: int, run: str, bundle: str) -> Episode:
    setup = Setup(
        graph="react", shape="s", tools={}, system="be good", sampling=Sampling(seed=number),
        limits=Limits(),
    )  # fmt: skip
    made = Episode(
        id="", task=Task(id=f"t{number}", prompt=f"What is {number}?"), bundle=bundle,
        purpose="serve", run=run, seed=number, answer=str(number), setup=setup, started=5.0,
    )  # fmt: skip
    return replace(made, id=attempt_of(made).id)


def reply(text: str) -> Completion:
    return Completion(
        message=Message(role="assistant", content=text), finish_reason="stop",
        usage=Usage(completion_tokens=1, calls=1), model="m",
    )  # fmt: skip


def fill(archive: Archive, run: str, workflow: str = "w", n: int = 3) -> list[Episode]:
    instruction = archive.put(Instruction(text="be good"))
    skill = archive.put(Skill(name="s", description="d", document=f"of {workflow}"))
    bundle = archive.put(Bundle(instruction=instruction, skills=(skill,)))
    if archive.alias(f"{workflow}/champion") is None:
        archive.point(f"{workflow}/champion", bundle, reason="first", scope=workflow)
    made = [rollout(number, run, bundle) for number in range(n)]
    body = {"purpose": "serve", "seed": 0, "plan": "p", "bundle": bundle}
    archive.add_event("run", run, workflow, body)  # type: ignore[arg-type]

    async def write() -> None:
        for one in made:
            await archive.add_call(f"{one.id}/0-abc", reply(one.answer or ""), scope=run)
        await archive.add_episodes(made, scope=workflow)
        await archive.add_scores([(one.id, SCORE) for one in made[:2]], "reward", scope=workflow)

    asyncio.run(write())
    return made


def lines(ours: Archive, tmp_path: Path) -> list[dict[str, Any]]:
    export(ours.log, tmp_path / "whole.jsonl")
    return [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]


def signed(values: list[dict[str, Any]]) -> str:
    """What somebody writes who knows the format."""
    before, told = "", []
    for value in values:
        value = {key: one for key, one in value.items() if key != "sha256"}
        before = _digest(before, value)
        told.append(json.dumps({**value, "sha256": before}) + "\n")
    return "".join(told)
