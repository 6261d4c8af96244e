"""The archive: identity by content, aliases, late scores, idempotent steps and calls, search."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentloop.errors import StoreError, UnknownName, UsageError
from agentloop.records import (
    Bundle,
    Completion,
    Dataset,
    Episode,
    Failure,
    Instruction,
    Message,
    Node,
    Policy,
    Sampling,
    Score,
    Skill,
    Task,
    Trajectory,
    Usage,
    Verdict,
    artifact_id,
)
from agentloop.store.archive import Archive
from agentloop.store.index import IndexBusy
from agentloop.store.log import Log
from agentloop.store.query import Draft, Query


class Letters:
    """An embedder for tests: how often each letter occurs."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        counts = [[1.0 + 9 * text.count(chr(97 + n)) for n in range(26)] for text in texts]
        return [[x / sum(y * y for y in row) ** 0.5 for x in row] for row in counts]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path, Letters()) as archive:
        yield archive


def episode(name: str, prompt: str = "p", **more: object) -> Episode:
    task = Task(id=f"task-{name}", prompt=prompt, expected=[1, {"x": None}])
    fields: dict[str, object] = {
        "bundle": "b", "purpose": "train", "run": "r", "seed": 1, "task": task,
    }  # fmt: skip
    return Episode(id=f"ep-{name}", **(fields | more))  # type: ignore[arg-type]


FULL = episode(
    "full",
    trajectories=(
        Trajectory(
            nodes=(
                Node(
                    parent=None, message=Message(role="user", content="é\ud800\x00"), token_ids=(1,)
                ),
                Node(
                    parent=0, message=Message(role="assistant", content="4", token_ids=(2, 3)),
                    token_ids=(2, 3), sampled=True, logprobs=(-0.5, -float("inf")),
                    sampling=Sampling(temperature=0.7, stop=("x",)), policy="policy-1",
                    finish_reason="stop",
                ),
            ),
            drift=1,
        ),
    ),
    failure=Failure(reason="tool_error", detail="d"), usage=Usage(prompt_tokens=3, usd=0.25),
    skills=("skill-1",), started=12.5,
)  # fmt: skip
SCORE = Score(value=0.5, success=False, source="x:y", parts={"a": 1.0}, steps=(0.5,))


def scored(archive: Archive, name: str) -> Score | None:
    found = archive.episode(name)
    assert found is not None
    return found.score


def test_episodes_come_back_whole_with_the_latest_score(archive: Archive) -> None:
    asyncio.run(archive.add_episodes([FULL, episode("a")], scope="w"))
    assert archive.episodes() == [FULL, episode("a")]
    right = Score(value=1.0, success=True, source="person")
    for spec, score in [("exact", SCORE), ("person", right)]:
        asyncio.run(archive.add_scores([("ep-full", score)], spec))
        assert scored(archive, "ep-full") == score
    assert [e.id for e in archive.episodes(Query(success=True, scope="w"))] == ["ep-full"]
    assert archive.episode("ep-a") == episode("a") and archive.episode("ep-no") is None
    assert archive.verify() == {"ok": True, "rows": 4, "problems": []}


def test_the_newest_come_first_when_asked(archive: Archive) -> None:
    made = [
        episode(f"{n:03}", run=f"r{n % 2}", task=Task(id=f"t{n % 5}", prompt="p"))
        for n in range(450)  # more than two pages
    ]
    asyncio.run(archive.add_episodes(made, scope="w"))
    ids = [e.id for e in made]

    def found(**given: object) -> list[str]:
        return [e.id for e in archive.episodes(Query(**given))]  # type: ignore[arg-type]

    assert found(newest=True) == ids[::-1] and found(newest=True, limit=3) == ids[:-4:-1]
    assert found(newest=True, limit=250, run="r1") == ids[::-1][::2]
    assert found(run="r1", task="t3") == ids[3::10] == found(task="t3", newest=True, run="r1")[::-1]
    assert found(task="t3", since_seq=10, until=20, newest=True) == [ids[18], ids[13]]
    chosen = archive.log.chosen(Query(kinds=("episode",), scope="w", run="r0"), ["ep-004", "ep-1"])
    assert chosen == {"ep-004"}
    assert archive.log.chosen(Query(kinds=("episode",), scope="v")) == set()
    assert archive.log.chosen(Query(kinds=("episode",), scope="w")) == set(ids)


def test_signals_append_when_they_change_and_only_then(archive: Archive) -> None:
    asyncio.run(archive.add_episodes([episode("a")]))
    up, down = (Score(value=float(v), success=v, source="person") for v in (True, False))
    for score in (up, up, down, down, up):  # a person may change their mind and back
        asyncio.run(archive.add_scores([("ep-a", score)], "feedback"))
        assert scored(archive, "ep-a") == score
    asyncio.run(archive.add_scores([("ep-a", down)], "judge"))
    asyncio.run(archive.add_scores([("ep-a", up)], "feedback"))  # a repeat: judge stays latest
    assert scored(archive, "ep-a") == down
    assert len(list(archive.read(Query(kinds=("score",))))) == 4


def test_artifacts_are_named_by_content_and_found_by_prefix(archive: Archive) -> None:
    instruction = Instruction(text="Think.", operator="seed")
    name = archive.put(instruction)
    same = Instruction(text="Think.", operator="reflect", parents=("instruction-0",))
    assert archive.put(same) == name == artifact_id(same)
    assert archive.get(name) == instruction, "the first that was stored stays"
    others = [
        Skill(name="n", description="d", document="# n"),
        Policy(base="m", sha256="ab", metrics={"loss": 0.5}),
        Bundle(instruction=name, policies={"agent": "policy-1"}),
        Dataset(rows=1, tokens=2, sha256="cd", episodes=("ep-1",), spec={"min": 1}),
    ]
    names = [archive.put(artifact) for artifact in others]
    assert [archive.get(n) for n in names] == others
    assert [n.split("-")[0] for n in names] == ["skill", "policy", "bundle", "dataset"]
    digits = name.partition("-")[2]
    assert archive.get(name[:-6]) == archive.get(digits[:10]) == instruction
    assert archive.get(name, Instruction) == instruction and archive.id(digits) == name
    assert [(n, a) for n, a, _ in archive.artifacts(Instruction)] == [(name, instruction)]
    with pytest.raises(UnknownName, match=f"did you mean `{name}`"):
        archive.get(name[:-1] + "x")
    with pytest.raises(UnknownName):
        archive.get(name, Skill)
    with pytest.raises(UnknownName):
        archive.get("")
    second = archive.put(Instruction(text="Think twice."))
    with pytest.raises(UsageError, match="could be any of") as error:
        archive.get("instruction-")
    assert name in str(error.value) and second in str(error.value)


def bundles(archive: Archive, n: int) -> list[str]:
    return [archive.put(Bundle(instruction=f"instruction-{i}")) for i in range(n)]


def test_an_alias_goes_back_one_bundle_at_a_time(archive: Archive) -> None:
    a, b, c = bundles(archive, 3)
    assert archive.alias("w/champion") is None
    for bundle in (a, b, b, c):
        archive.point("w/champion", bundle, reason="gate", scope="w")
    archive.point("w/champion2", a, reason="another alias that begins alike", scope="w")
    assert archive.rollback("w/champion") == b
    now = archive.alias("w/champion")
    assert now is not None and (now.bundle, now.scope, now.back) == (b, "w", True)
    assert archive.rollback("w/champion", reason="worse still") == a
    with pytest.raises(UsageError, match="no bundle before"):
        archive.rollback("w/champion")
    # what is stored of the reason is not what was given; that is no other process's move
    archive.point("w/champion", c, reason="password: q7R2k9Wx4T!", scope="w")
    assert archive.rollback("w/champion") == a
    assert [p.bundle for p in archive.alias_history("w/champion")] == [a, b, b, c, b, a, c, a]
    with pytest.raises(UnknownName, match="did you mean `w/champion`"):
        archive.rollback("w/champio")
    with pytest.raises(UnknownName):
        archive.point("w/champion", "bundle-none", reason="", scope="w")


def test_two_processes_cannot_both_move_an_alias(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = bundles(archive, 2)
    archive.point("w/champion", a, reason="gate", scope="w")
    stale = archive.log.keys("alias", "w/champion#")
    archive.point("w/champion", b, reason="gate", scope="w")
    keys = archive.log.keys

    def late(kind: str, prefix: str = "") -> list[str]:
        return stale if kind == "alias" else keys(kind, prefix)

    monkeypatch.setattr(archive.log, "keys", late)
    with pytest.raises(StoreError, match="moved by another process"):
        archive.point("w/champion", a, reason="gate", scope="w")
    token = archive.log.lease("cycle:w", "me", 10)
    archive.log.release("cycle:w", token)
    with pytest.raises(StoreError, match="lost"):
        archive.add_step("c", "s", 1, fence=("cycle:w", token))


def test_steps_calls_verdicts_and_events_are_kept_once(archive: Archive) -> None:
    assert archive.step("c1", "collect") is None
    archive.add_step("c1", "collect", {"n": 1})
    archive.add_step("c1", "collect", {"n": 2})
    assert archive.step("c1", "collect") == {"n": 1} and archive.step("c2", "collect") is None
    reply = Completion(
        message=Message(role="assistant", content="hi"), finish_reason="stop", usage=Usage(usd=0.1),
        model="m", completion_ids=(1, 2), logprobs=(-0.1, -0.2),
    )  # fmt: skip
    asyncio.run(archive.add_call("ep-1/0", reply))
    assert archive.call("ep-1/0") == reply and archive.call("ep-1/1") is None
    asyncio.run(archive.add_call("ep-12/3-ab-cd", reply))
    assert archive.calls_of("ep-1") == ["0"] and archive.calls_of("ep-12") == ["3-ab-cd"]
    verdicts = [
        Verdict(
            subject=subject, champion="a", challenger="b", n=2, champion_rate=0.0, effect=1.0,
            challenger_rate=1.0, ci95=(0.5, 1.0), p=0.01, tokens_ratio=1.0, passed=True, reason="",
            outcomes=(("t", 0, 1),),
        )
        for subject in ("policy", "joint")
    ]  # fmt: skip
    for verdict in (*verdicts, verdicts[0]):
        archive.add_verdict(verdict, "c1")
    assert archive.verdicts("c1") == verdicts and archive.verdicts("c") == []
    archive.add_event("report", "c1", "w", {"cycle": "c1"})
    assert [e.body for e in archive.read(Query(kinds=("report",)))] == [{"cycle": "c1"}]
    with pytest.raises(UsageError, match="method of their own"):
        archive.add_event("alias", "w/champion#000001", "w", {})


def test_search_finds_what_was_just_added_and_filters(archive: Archive) -> None:
    made = [episode("a", "aaaa"), episode("b", "bbbb"), episode("x", "aaab", purpose="eval")]
    asyncio.run(archive.add_episodes(made, scope="w"))
    right = Score(value=1.0, success=True, source="x")
    asyncio.run(archive.add_scores([("ep-b", right), ("ep-x", right)], "s"))
    archive.put(Skill(name="bees", description="bbb", document="d"))
    found = archive.search("episode", "aaaa", 2)
    assert [name for name, _ in found] == ["ep-a", "ep-x"] and abs(found[0][1]) < 1e-3
    assert [n for n, _ in archive.search("episode", "aaaa", success=True)] == ["ep-x", "ep-b"]
    only = archive.search("episode", "aaaa", success=True, purpose="train", scope="w")
    assert [n for n, _ in only] == ["ep-b"]
    asyncio.run(archive.add_scores([("ep-a", right)], "late"))  # in a later drain than its episode
    assert archive.search("episode", "aaaa", success=True)[0][0] == "ep-a"
    assert [n[:6] for n, _ in archive.search("skill", "bbb")] == ["skill-"]
    assert archive.search("instruction", "a") == []
    with pytest.raises(UnknownName, match="did you mean `skill`"):
        archive.search("skil", "a")
    with pytest.raises(UsageError, match="is empty; say what to look for"):
        archive.search("skill", " ")
    assert archive.verify()["ok"]


def test_only_a_damaged_index_is_built_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.put(Skill(name="bees", description="bbb", document="d"))
    archive.reindex()
    near, build = archive.index.near, archive.index._build
    faults: list[Exception] = []
    told: list[Log] = []

    def faulty(*given: Any) -> Any:
        if faults:
            raise faults.pop()
        return near(*given)

    def counted(log: Log) -> int:
        told.append(log)
        return build(log)

    monkeypatch.setattr(archive.index, "near", faulty)
    monkeypatch.setattr(archive.index, "_build", counted)
    faults.append(StoreError("its files were taken away"))
    assert len(archive.search("skill", "bbb")) == 1 and not told
    faults.append(IndexBusy(archive.index.path))
    with pytest.raises(IndexBusy, match="another process is writing"):
        archive.search("skill", "bbb")
    assert not told, "every process that waits would build it again"
    faults += [StoreError("damaged"), StoreError("where no digest shows it")]
    assert len(archive.search("skill", "bbb")) == 1 and len(told) == 1


def test_damage_is_a_problem_not_a_traceback(archive: Archive) -> None:
    archive.log.append([Draft(kind="skill", key="skill-1", body={"no": "skill"})])
    with pytest.raises(StoreError, match="not a Skill"):
        archive.get("skill-1")
