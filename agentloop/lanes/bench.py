"""The bench: everything a lane or a gate is lent, behind one verb, `attempt`.

Goes in: tasks and a bundle. Comes out: scored episodes, in order, already in the log. An attempt
whose episode the log knows is not made again: its id is the hash of all that decides it, so a
resumed cycle pays for nothing twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentloop.errors import BudgetReached, GraderError, ModelError, ServerError, UsageError
from agentloop.graphs.run import Runner
from agentloop.lanes.compose import compose
from agentloop.policies.registry import Policies
from agentloop.ports import Embedder, Model, Progress, Reward, Sandbox, Server, Tasks, Tool, Trainer
from agentloop.records import (
    AGENT_REASONS,
    Attempt,
    Bundle,
    Episode,
    Failure,
    Instruction,
    Limits,
    Policy,
    Purpose,
    Sampling,
    Skill,
    Task,
)  # fmt: skip
from agentloop.skills.retrieve import Retriever
from agentloop.store.archive import Archive
from agentloop.store.query import Query

_GROUP = 256


@dataclass(frozen=True)
class Ready:
    """A bundle under which rollouts can begin: its policy is served."""

    bundle: str
    instruction: str
    policy: str | None
    retriever: Retriever | None

    def system(self, prompt: str, lent: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
        """The system text for one task, and the ids of the skills in it."""
        picked = self.retriever.pick(prompt) if self.retriever else []
        bodies = [skill_text(skill) for _, skill, _ in picked]
        skills = tuple(skill_id for skill_id, _, _ in picked)
        return compose(self.instruction, bodies, lent), skills


Lend = Callable[[Task], Sequence[str]]
"""Worked examples to put in the prompt of one task, beside what the bundle says."""


@dataclass(frozen=True)
class Order:
    """How a group of attempts is made: why, under which name, how often, how hot."""

    purpose: Purpose
    subject: str
    samples: int = 1
    temperature: float | None = None
    """`None` is the workflow's own decoding."""
    lend: Lend | None = None
    label: str = ""
    """What progress calls it, when not by its subject."""


@dataclass
class Bench:
    """Lent to collectors, lanes and gates. One per cycle or run."""

    archive: Archive
    tasks: Tasks
    runner: Runner
    model: Model
    reward: Reward
    tools: Sequence[Tool]
    limits: Limits
    decoding: Sampling
    embedder: Embedder
    sandbox: Sandbox
    home: Path
    policies: Policies
    trainer: Trainer | None
    server: Server | None
    base_model: Path | None
    """Directory of the local model's weights; `None` for an API model."""
    workflow: str
    """Its name: the scope of what is logged."""
    run: str
    seed: int
    champion: str
    """Id of the bundle that proposals start from."""
    progress: Progress
    concurrency: int = 64
    max_rollouts: int | None = None
    """Of the whole run; `None` is no limit."""

    def bundle(self, bundle_id: str) -> Bundle:
        """The bundle by its id."""
        return self.archive.get(bundle_id, Bundle)

    def instruction(self, bundle: Bundle) -> Instruction:
        """The bundle's instruction."""
        return self.archive.get(bundle.instruction, Instruction)

    async def attempt(self, tasks: Sequence[Task], bundle: Bundle, order: Order) -> list[Episode]:
        """`samples` scored episodes per task, task by task; those known to the log are reused."""
        attempts = await self.orders(tasks, bundle, order)
        known = {one.id: self.archive.made(one) for one in attempts}
        known.update({one.id: one for one in await self.keep(_unscored(known.values()))})
        fresh = [one for one in attempts if not _usable(known[one.id])]
        if fresh:
            self.afford(len(fresh))
            made = await self._run(fresh, order)
            await self._refuse_outage(made)
            known.update({episode.id: episode for episode in made})
        episodes = [known[one.id] for one in attempts]
        return [episode for episode in episodes if episode is not None]

    async def _refuse_outage(self, made: Sequence[Episode]) -> None:
        """When more than half of a batch broke there is nothing to learn or to judge: stop with the
        cause, so that the run can be continued once it is mended. Unless the champion, asked at
        once, does not break: then it is the bundle that does."""
        broken = [one for one in made if _broke(one)]
        if len(broken) * 2 <= len(made):
            return
        first, failure = broken[0], broken[0].failure
        assert failure is not None
        if first.bundle != self.champion and await self._champion_works(broken):
            return
        raise ModelError(
            f"{len(broken)} of {len(made)} rollouts failed; the first: {failure.reason}: "
            f"{failure.detail}",
            reason=failure.reason,
        )

    async def _champion_works(self, broken: Sequence[Episode]) -> bool:
        """Whether it breaks on none of the first few of these tasks. Asked anew each time (the
        subject says when): what the log knows of an earlier minute does not count."""
        subject = f"outage {broken[0].id} {_ended(broken[0]):.6f}"
        order = Order(purpose="eval", subject=subject, label="ask the champion")
        tasks = list({one.task.id: one.task for one in broken}.values())[:_ASKED]
        try:
            attempts = await self.orders(tasks, self.bundle(self.champion), order)
            self.afford(len(attempts))
            return not any(_broke(one) for one in await self._run(attempts, order))
        except ServerError:  # the champion cannot even be served
            return False

    def afford(self, rollouts: int) -> None:
        """Raises `BudgetReached` when the run may not make so many more rollouts."""
        if self.max_rollouts is None:
            return
        query = Query(kinds=("episode",), run=self.run)
        made = sum(1 for _ in self.archive.read(query))
        if made + rollouts > self.max_rollouts:
            raise BudgetReached(
                f"{made} of {self.max_rollouts} rollouts are used and {rollouts} more are needed; "
                "raise `budget.rollouts` and continue"
            )

    async def _run(self, attempts: Sequence[Attempt], order: Order) -> list[Episode]:
        """Groups of a few hundred: each is scored and acknowledged whole. A budget that is spent
        on the way ends the group early, and what was finished is kept."""
        made: list[Episode] = []
        place = {attempt.id: at for at, attempt in enumerate(attempts)}
        self.progress(order.label or order.subject, 0, len(attempts))
        for start in range(0, len(attempts), _GROUP):
            group: list[Episode] = []

            def note(
                episode: Episode, group: list[Episode] = group, before: int = len(made)
            ) -> None:
                group.append(episode)
                self.progress(order.label or order.subject, before + len(group), len(attempts))

            try:
                await self.runner.run(
                    attempts[start : start + _GROUP], model=self.model, tools=self.tools,
                    limits=self.limits, concurrency=self.concurrency, on_done=note,
                )  # fmt: skip
            finally:
                # In the order of the attempts: what learners read from the log must not depend on
                # which rollout happened to end first.
                made += await self.keep(sorted(group, key=lambda one: place[one.id]))
        return made

    async def keep(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Log, score, tell the curriculum; the episodes with their scores."""
        if not episodes:
            return []
        filed = [_filed(one) for one in episodes if not _never_began(one)]
        await self.archive.add_episodes(filed, scope=self.workflow)  # before a grader can fail
        episodes = await score(self.reward, episodes)
        scores = [(one.id, one.score) for one in episodes if one.score is not None]
        await self.archive.add_scores(scores, "reward", scope=self.workflow)
        self.tasks.learn(episodes)
        return list(episodes)

    async def orders(self, tasks: Sequence[Task], bundle: Bundle, order: Order) -> list[Attempt]:
        """The attempts that `attempt` makes; raises as `ready` does."""
        ready = await self.ready(bundle)
        decoding = self.decoding
        if order.temperature is not None:
            decoding = replace(decoding, temperature=order.temperature)
        attempts: list[Attempt] = []
        for task in tasks:
            system, skills = ready.system(task.prompt, order.lend(task) if order.lend else ())
            attempts += [
                Attempt(
                    task=task, bundle=ready.bundle, system=system,
                    sampling=replace(decoding, seed=stream(self.seed, task.id, sample)),
                    purpose=order.purpose, run=self.run, sample=sample, policy=ready.policy,
                    skills=skills, subject=order.subject,
                )
                for sample in range(order.samples)
            ]  # fmt: skip
        return attempts

    async def ready(self, bundle: Bundle) -> Ready:
        """The bundle, stored, its policy served. Raises `UsageError` when that was trained on
        another model, `ServerError` when it cannot be served."""
        bundle_id = self.archive.put(bundle)
        policy = bundle.policies.get("agent")
        if policy is not None:
            await self._load(policy)
        return Ready(bundle_id, self.instruction(bundle).text, policy, self._retriever(bundle))

    async def _load(self, policy: str) -> None:
        """Serve the adapter. Raises `UsageError` when it was trained on another model."""
        base = self.archive.get(policy, Policy).base
        if self.base_model is None or Path(base).name != self.base_model.name:
            raise UsageError(
                f"the bundle's policy `{policy}` was trained on `{Path(base).name}` and the model "
                "here is another; use that model, another --home, or: agentloop rollback WORKFLOW"
            )
        if self.server is not None:
            await self.server.load_policy(policy, self.policies.path(policy))

    def _retriever(self, bundle: Bundle) -> Retriever | None:
        skills = [(skill_id, self.archive.get(skill_id, Skill)) for skill_id in bundle.skills]
        return Retriever(skills, self.embedder) if skills else None


def stream(seed: int, task: str, sample: int) -> int:
    """The sampling seed of one attempt. It differs from task to task: with one stream for all of
    them they would draw the same numbers, and explore or miss the same thing together."""
    return zlib.crc32(f"{seed}/{task}/{sample}".encode())


def skill_text(skill: Skill) -> str:
    """What the model sees of a retrieved skill: a heading and the document's body."""
    _, _, rest = skill.document.partition("---\n")
    _, mark, body = rest.partition("\n---\n")
    # The heading also ends the last example of whatever text comes before it.
    return f"## Skill: {skill.name}\n\n{body.strip() if mark else skill.document.strip()}"


async def score(reward: Reward, episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes with scores; infrastructure failures stay unscored. A grader that fails on
    one episode makes that one an infrastructure failure, never a low reward."""
    due = [e for e in episodes if e.failure is None or e.failure.reason in AGENT_REASONS]
    scored: dict[str, Episode] = {}
    try:
        scores = await reward.score(due)
        scored = {e.id: replace(e, score=s) for e, s in zip(due, scores, strict=True)}
    except GraderError:
        for episode in due:
            scored[episode.id] = await _score_one(reward, episode)
    return [scored.get(episode.id, episode) for episode in episodes]


async def _score_one(reward: Reward, episode: Episode) -> Episode:
    try:
        [one] = await reward.score([episode])
    except GraderError as error:
        return replace(episode, failure=Failure(reason="grader_error", detail=str(error)))
    return replace(episode, score=one)


def _filed(episode: Episode) -> Episode:
    """As it is logged: unscored (scores are entries of their own), and an infrastructure failure
    under a name of its own, by when it ended, so that the same attempt can succeed later. (Not one
    that begins with the attempt's id, which would be found for it.)"""
    if _usable(episode):
        return replace(episode, score=None)
    name = episode.id.replace("ep-", "ep-failed-", 1)
    return replace(episode, score=None, id=f"{name}-{_ended(episode):.6f}")


def _ended(episode: Episode) -> float:
    """When a rollout stopped; it may have begun in another process."""
    return episode.started + episode.seconds


def _unscored(episodes: Iterable[Episode | None]) -> list[Episode]:
    """Those that were logged just before a crash and never got their score."""
    return [one for one in episodes if one is not None and _usable(one) and one.score is None]


def _never_began(episode: Episode) -> bool:
    """Refused before its first call because the budget was spent: nothing to keep."""
    nodes = any(one.nodes for one in episode.trajectories)
    return episode.failure is not None and episode.failure.reason == "budget" and not nodes


_OUTAGE = frozenset(
    {"model_error", "model_timeout", "graph_error", "sandbox_error", "grader_error"}
)
"""Reasons that usually no bundle causes."""
_ASKED = 4
"""Rollouts of the champion that tell an outage from a bundle that breaks its own calls: of an
endpoint that fails half of the time they let one outage in sixteen pass as the bundle's fault."""


def _broke(episode: Episode) -> bool:
    return episode.failure is not None and episode.failure.reason in _OUTAGE


def _usable(episode: Episode | None) -> bool:
    """An infrastructure failure of an earlier try is tried again."""
    return episode is not None and (
        episode.failure is None or episode.failure.reason in AGENT_REASONS
    )
