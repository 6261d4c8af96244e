"""A phase of offline learning, as one part: select from the log, give credit, cut rows, train.

Goes in: the log, and what `lanes: policy:` of a workflow says. Comes out: a bundle with a new
policy, or the reason why there is none. The dataset is frozen with its lineage before anything is
learned, and its name is noted in the log: a phase that is run again, by a resumed cycle or later by
that name, learns from the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from agentloop.datasets.filters import BASE, Filters, Lent
from agentloop.datasets.makers import RLRows, SFTRows
from agentloop.datasets.manifest import rows_path
from agentloop.datasets.recipe import Built, Recipe
from agentloop.datasets.select import Key
from agentloop.errors import UsageError
from agentloop.lanes import flags
from agentloop.lanes.again import again
from agentloop.lanes.bench import Bench
from agentloop.lanes.data_faults import caused_by_data
from agentloop.lanes.gated import held_out
from agentloop.lanes.nested import A_CREDIT, A_ROW_MAKER, ROWS
from agentloop.ports import part
from agentloop.records import (
    Dataset,
    Episode,
    Json,
    Policy,
    Proposal,
    Score,
    Skill,
    TrainingJob,
    artifact_id,
    content_id,
)  # fmt: skip
from agentloop.skills.induce import cluster
from agentloop.store.query import Query
from agentloop.training.guards import Guards, GuardSettings
from agentloop.training.preference_settings import DPOSettings, KTOSettings, RewardSettings
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.session_settings import SessionSettings
from agentloop.training.settings import SFTSettings, settings_of

_TRAINING = "agentloop.training."
METHODS = {
    "sft": f"{_TRAINING}sft:train",
    "rl": f"{_TRAINING}replay:train",
    "preference": f"{_TRAINING}preference:dpo",
    "unpaired": f"{_TRAINING}preference:kto",
    "listwise": f"{_TRAINING}reward_model:train",
}
"""The method that each kind of rows is for, unless another is named."""
_SETTINGS: dict[str, type[SFTSettings]] = {
    METHODS["sft"]: SFTSettings,
    METHODS["rl"]: ReplaySettings,
    METHODS["preference"]: DPOSettings,
    METHODS["unpaired"]: KTOSettings,
    METHODS["listwise"]: RewardSettings,
    f"{_TRAINING}session:train": SessionSettings,
}


@part
class Phase:
    """One phase; `select`, `credit`, `rows`, `method` and `settings` in the order of the data."""

    log: Literal["cycle", "workflow"] = "cycle"
    """Where from: this cycle's rollouts, or all that this workflow ever made."""
    select: Filters = Filters()
    credit: Annotated[Any, A_CREDIT] = None
    """How rewards become advantages: `group`, `percentile`, `step`, `critics`, `attempts` or a
    reference; rows of `rl` need one."""
    rows: Annotated[Any, A_ROW_MAKER] = SFTRows()
    """`sft`, `rl`, `preference`, `unpaired`, `listwise` or a reference."""
    method: str = ""
    """Reference of the training function; empty is the one that the rows are for."""
    settings: dict[str, Json] = Field(default_factory=dict)
    """The method's."""
    role: str = "agent"
    """What is trained; a reward model is not the agent."""
    at_least: Annotated[int, Field(ge=1)] = 4
    """With fewer rows than this there is nothing to learn from."""
    dataset: str = ""
    """The id of a frozen dataset: learn from its rows once more, and select nothing."""

    @model_validator(mode="after")
    def _fits(self) -> Phase:
        """Wrong settings are told before anything is written."""
        check_settings(self.trainer(), self.settings, self.role)
        if isinstance(self.rows, RLRows) and self.credit is None:
            raise UsageError("rows of `rl` carry advantages; name a `credit`, such as `group`")
        return self

    def trainer(self) -> str:
        """The reference of the method."""
        kind = next((name for name, made in ROWS.items() if type(self.rows) is made), None)
        if self.method or kind is not None:
            return self.method or METHODS[str(kind)]
        raise UsageError(f"rows of `{type(self.rows).__name__}` need a `method`; name one")

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with the new policy, or the reason why there is none. Raises `TrainingError`
        when too many rollouts gamed their reward, the data cannot be learned from or the trainer
        failed, and `UsageError` for a `dataset` that is not this phase's."""
        if bench.base_model is None or bench.trainer is None:
            return skip(API)
        champion = bench.bundle(bench.champion)
        lesson = Lesson(
            self.trainer(), self.settings, self.role, champion.policies.get(self.role)
        )  # fmt: skip
        recipe = Recipe(
            select=self.select, credit=self.credit, rows=self.rows,
            system=bench.instruction(champion).text,
        )  # fmt: skip
        if self.dataset:
            found: Dataset | str = again(bench, recipe, self.dataset)
        else:
            found = self._data(bench, recipe, lesson)
        if isinstance(found, str):
            return skip(found)
        learned = await learn(bench, found, lesson)
        bundle = replace(champion, policies={**champion.policies, self.role: learned.policy})
        return Proposal(
            lane="policy", state="proposed", bundle=bundle, candidate=learned.policy,
            reason=f"trained on {found.rows} rows of {len(found.episodes)} episodes",
        )  # fmt: skip

    def _data(self, bench: Bench, recipe: Recipe, lesson: Lesson) -> Dataset | str:
        """The frozen dataset, the first one when the phase was begun before; or why not."""
        spec = recipe.spec()
        step = content_id("phase", spec, self.log, bench.champion, lesson.spec(bench))
        known = bench.archive.step(bench.run, step)
        if known is not None:
            return bench.archive.get(str(known), Dataset)
        episodes = self.episodes(bench)
        lately = self.lately(bench, episodes)
        once = guard_settings(self.settings).model_copy(update={"patience": 1})
        Guards(once).watch(0, {"hack_rate": hack_rate(lately, self.select.hacks)})
        built = build(recipe, episodes, lent(bench, episodes, self.select), lately=lately)
        if said := flags.alarm(lately):
            bench.progress("alarm", len(lately) - len(flags.unflagged(lately)), len(lately), said)
        if reason := nothing_to_learn(built, len(episodes), self.at_least):
            return reason
        dataset = freeze(bench, recipe, built, lesson)
        bench.archive.add_step(bench.run, step, bench.archive.put(dataset))
        return dataset

    def lately(self, bench: Bench, episodes: Sequence[Episode]) -> list[Episode]:
        """Those of `episodes` that say whether the reward is being gamed now: sampled by the
        champion's version (or the `policies` chosen), where this phase may choose from. A log is
        full of what was mended since, and of trials that nobody learns from."""
        now = bench.bundle(bench.champion).policies.get("agent") or BASE
        where = self.select
        found = Filters(
            runs=where.runs, purposes=where.purposes, bundles=where.bundles, since=where.since,
            until=where.until, policies=where.policies or (now,),
        )  # fmt: skip
        return list(found.choose(episodes).episodes)

    def episodes(self, bench: Bench) -> list[Episode]:
        """What is selected from, evaluations left out."""
        where = Query(run=bench.run) if self.log == "cycle" else Query(scope=bench.workflow)
        return [one for one in bench.archive.episodes(where) if one.purpose != "eval"]


API = "the model is behind an API; only a local model's weights can be trained"


@dataclass(frozen=True)
class Lesson:
    """How a dataset is learned from."""

    method: str
    settings: dict[str, Json]
    role: str
    parent: str | None
    """The policy to go on from; `None` is the base model."""

    def spec(self, bench: Bench) -> dict[str, Json]:
        """What is frozen with the rows: how they are learned from here. The base model by its name,
        so that the same phase in another home has the same dataset."""
        return {
            "method": self.method, "settings": self.settings, "role": self.role,
            "parent": self.parent, "base": bench.base_model.name if bench.base_model else None,
            "seed": bench.seed,
        }  # fmt: skip


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    policy: str
    metrics: dict[str, float]
    job: str
    """The directory of the finished job."""


def build(
    recipe: Recipe, episodes: Sequence[Episode], lent: Lent, *,
    lately: Sequence[Episode] | None = None,
) -> Built:  # fmt: skip
    """The rows of those `episodes` that raised no flag. Raises `TrainingError` for episodes that
    none can be made of, and when too many of `lately` (all, unless given) raised one."""
    flags.refuse(episodes if lately is None else lately)
    with caused_by_data((UsageError,)):
        return recipe.build(flags.unflagged(episodes), lent)


def freeze(bench: Bench, recipe: Recipe, built: Built, lesson: Lesson) -> Dataset:
    """Write them, with how they are learned from. Raises `TrainingError` for rows that may not be
    kept, and `StoreError` when the disk refuses."""
    parents = [lesson.parent] if lesson.parent else []
    with caused_by_data():
        return recipe.freeze(
            built, bench.home / "datasets", parents=parents, training=lesson.spec(bench)
        )


async def learn(bench: Bench, dataset: Dataset, lesson: Lesson) -> Learned:
    """Train in a process of its own and admit the result; a finished job is found, not repeated.
    Raises `TrainingError`, and nothing is admitted, also when the trainer refuses the rows."""
    assert bench.trainer is not None
    name, base = artifact_id(dataset), str(bench.base_model)
    parts = (base, lesson.method, lesson.settings, lesson.parent, bench.seed)
    with caused_by_data():
        job = TrainingJob(
            method=lesson.method, base=base,
            dataset=str(rows_path(bench.home / "datasets", dataset)),
            out=str(bench.home / "training" / content_id("job", name, *parts)),
            adapter=str(bench.policies.path(lesson.parent)) if lesson.parent else None,
            settings=lesson.settings, seed=bench.seed,
        )  # fmt: skip
        result = await bench.trainer.train(job)
        policy = bench.policies.admit(
            result, base=base, role=lesson.role, dataset=name,
            parents=[lesson.parent] if lesson.parent else [],
        )  # fmt: skip
    return Learned(bench.archive.put(policy), dict(result.metrics), job.out)


def lent(
    bench: Bench, episodes: Sequence[Episode], select: Filters, *,
    versions: Sequence[str] | None = None,
) -> Lent:  # fmt: skip
    """What a selection may ask for; `versions` are those that led to the champion's policy unless
    given. Ages are counted from the newest episode, so that a resumed phase selects the same."""
    if versions is None:
        versions = lineage(bench, bench.bundle(bench.champion).policies.get("agent"))
    return Lent(
        held_out=held_out(bench),
        search=bench.archive.search,
        skill=lambda name: bench.archive.get(name, Skill),
        embedder=bench.embedder,
        versions=versions,
        now=max((one.started for one in episodes), default=0.0),
        kind=_kinds(bench, episodes) if select.cap_per_kind is not None else None,
    )


def lineage(bench: Bench, newest: str | None) -> list[str]:
    """The versions that led to `newest`, oldest first; `None` is the base model."""
    found: list[str] = []
    name = newest
    while name is not None and name not in found:
        found.append(name)
        name = next(iter(bench.archive.get(name, Policy).parents), None)
    return [BASE, *reversed(found)]


def hack_rate(episodes: Sequence[Episode], hacks: Mapping[str, float]) -> float:
    """The share of the scored episodes that gamed their reward: a part of the score that `hacks`
    names is above its threshold."""
    scored = [one.score for one in episodes if one.score is not None]
    flagged = sum(
        any(score.parts.get(name, 0.0) > most for name, most in hacks.items()) for score in scored
    )
    return flagged / max(1, len(scored))


def guard_settings(settings: dict[str, Json]) -> GuardSettings:
    """The guards that a method's settings name; their defaults where it has none."""
    try:
        return GuardSettings.model_validate(settings.get("guards") or {})
    except ValidationError as error:
        raise UsageError(f"training setting `guards`: {error.errors()[0]['msg']}") from None


def nothing_to_learn(built: Built, episodes: int, at_least: int) -> str:
    """Why no phase is worth it, in a sentence; empty when one is."""
    why = [f"{n} {reason}" for each in built.left_out.values() for reason, n in each.items()]
    out = f" (left out: {', '.join(why)})" if why else ""
    if len(built.rows) < at_least:
        return f"{len(built.rows)} rows of {episodes} episodes; at least {at_least} are needed{out}"
    if any(row.advantages for row in built.rows) and not any(
        any(row.advantages) for row in built.rows
    ):
        return f"every sample was worth as much as its group, so there is nothing to compare{out}"
    return ""


def check_settings(method: str, settings: dict[str, Json], role: str = "agent") -> None:
    """Raise `UsageError` for settings that a shipped method would refuse, or whose result a lane
    could not serve as `role`."""
    if method == METHODS["listwise"] and role == "agent":
        raise UsageError(
            "a reward model scores texts and cannot serve as the agent; give it another `role`, "
            "such as `role: judge`"
        )
    if method in _SETTINGS:
        settings_of(_SETTINGS[method], settings)
    if settings.get("weights") == "full":
        raise UsageError(
            "a lane serves what it trains beside the base model, as an adapter; leave out "
            "`weights: full`, which is for a trainer on its own"
        )


def skip(reason: str) -> Proposal:
    """No proposal, and why."""
    return Proposal(lane="policy", state="skipped", reason=reason)


def _kinds(bench: Bench, episodes: Sequence[Episode]) -> Key:
    """The kind of an episode's task, found from the prompts alone."""
    ones = {one.task.id: one for one in reversed(episodes)}
    known = Score(value=1.0, success=True, source="kind")  # a cluster is of successes
    found = cluster([replace(one, score=known) for one in ones.values()], bench.embedder)
    kind = {one.task.id: number for number, group in enumerate(found) for one in group}
    return lambda one: kind[one.task.id]


__all__ = ["Learned", "Lesson", "Phase", "learn", "lent", "lineage"]
