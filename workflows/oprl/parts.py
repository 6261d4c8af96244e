"""What only this workflow has: the lane that learns what each step was worth and then learns from
it, and the scripted model.

Goes in: this cycle's groups of rollouts. Comes out: a proposal: a policy trained on the sum of two
advantages, of the episode and of the step. What a step was worth is told by a second model, fitted
to prefer what ended well; it starts as a copy of the policy, so what it has learned since is
exactly where the two differ.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import aiohttp
from pydantic import Field

from agentloop.datasets.advantages import Baseline
from agentloop.datasets.credit import StepCredit
from agentloop.datasets.filters import Filters
from agentloop.datasets.groups import countable, groups, samples
from agentloop.datasets.makers import PreferenceRows, RLRows
from agentloop.datasets.recipe import Recipe
from agentloop.datasets.rl_rows import why_no_ratio
from agentloop.datasets.segments import Segment, cut
from agentloop.errors import ServerError
from agentloop.lanes.bench import Bench
from agentloop.lanes.phase import API, METHODS, Lesson, Phase, learn, lent, skip
from agentloop.ports import part
from agentloop.records import Endpoint, Episode, Json, Proposal, Request, Trajectory
from agentloop.store.query import Query
from agentloop.tasks.split import fraction
from agentloop.training.schedules import LinearRamp
from agentloop.trajectories.branches import ratio_branches

EVENT, ROLE, SPEC = "process_rewards", "process_reward", "process"
"""The kind of the log's entries about a fit; what the model is to the registry; the name of the
scores that carry step rewards."""
_SECONDS, _AT_ONCE = 300.0, 16

Steps = dict[tuple[str, int, int], float]
"""Step reward by (episode id, trajectory, node)."""


@part
class ProcessRewards:
    """Fit the step rewards, score the steps, train on both advantages."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the steps' advantage where their rewards are trusted; 0 is the episode's alone."""
    trust: LinearRamp = LinearRamp(low=0.55, high=0.75)
    """From the share of fresh pairs that are in the right order to a share of `alpha`: rewards that
    know nothing would be noise, made large by dividing it by its deviation."""
    beta: Annotated[float, Field(gt=0)] = 0.05
    apart: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the tasks whose pairs are kept fresh."""
    baseline: Baseline = "mean_std"
    judge: dict[str, Json] = Field(default_factory=dict)
    """Settings of the fit."""
    settings: dict[str, Json] = Field(default_factory=dict)
    """Settings of the policy's training."""

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a new policy, or the reason why there is none."""
        if bench.base_model is None or bench.trainer is None:
            return skip(API)
        found = bench.archive.episodes(Query(run=bench.run, purpose="collect"))
        episodes = [one for one in found if countable(one)]
        steps, facts = await self.steps(bench, episodes)
        scores = [
            (one.id, replace(one.score, steps=tuple(steps.get((one.id, *at), 0.0)
                                                    for at in samples(one))))
            for one in episodes if one.score is not None
        ]  # fmt: skip
        await bench.archive.add_scores(scores, SPEC, scope=bench.workflow)
        accuracy, pairs = pair_accuracy(
            [replace(one, score=score) for one, (_, score) in zip(episodes, scores, strict=True)
             if not self.fits(one)]
        )  # fmt: skip
        alpha = self.alpha * self.trust.at(accuracy)
        facts = {**facts, "pairs": pairs, "accuracy": accuracy, "alpha": alpha}
        bench.archive.add_event(EVENT, bench.run, bench.workflow, facts)
        phase = Phase(
            select=Filters(mixed_groups=True), rows=RLRows(), settings=self.settings,
            credit=StepCredit(alpha=alpha, baseline=self.baseline),
        )  # fmt: skip
        return await phase.propose(bench)

    def fits(self, episode: Episode) -> bool:
        """Whether its task's pairs are fitted to, and not kept fresh."""
        return fraction("pairs", episode.task.id) >= self.apart

    async def steps(
        self, bench: Bench, episodes: Sequence[Episode]
    ) -> tuple[Steps, dict[str, Json]]:
        """beta x (log-prob under the fitted model - as sampled), added up per step; empty where no
        task has a pair. The fit's reference is the policy that sampled, so its loss is the pairs'
        logistic loss of exactly this sum over a trajectory."""
        champion = bench.bundle(bench.champion)
        parent = champion.policies.get("agent")
        select = Filters(mixed_groups=True)
        recipe = Recipe(select=select, rows=PreferenceRows())
        used = [one for one in episodes if self.fits(one)]
        built = recipe.build(used, lent(bench, used, select))
        if not self.alpha or not built.rows:
            return {}, {"rows": 0, "model": None}
        dataset = recipe.freeze(built, bench.home / "datasets", parents=[parent] if parent else [])
        bench.archive.put(dataset)
        judge: dict[str, Json] = {**self.judge, "beta": self.beta}
        learned = await learn(bench, dataset, Lesson(METHODS["preference"], judge, ROLE, parent))
        facts: dict[str, Json] = {"rows": dataset.rows, "model": learned.policy}
        if bench.server is None:  # scripted: nothing was fitted, so the two models are the same
            return {}, facts
        endpoint = await bench.server.start()
        await bench.server.load_policy(learned.policy, bench.policies.path(learned.policy))
        return await step_rewards(episodes, endpoint, learned.policy, self.beta), facts


async def step_rewards(
    episodes: Sequence[Episode], endpoint: Endpoint, model: str, beta: float
) -> Steps:
    """The step rewards of all episodes with exact tokens, by the model served as `model`. Raises
    `ServerError`."""
    jobs = [
        (one.id, number, cut(branch, trajectory, lambda *_: True))
        for one in episodes
        for number, trajectory in enumerate(one.trajectories)
        if usable(trajectory)
        for branch in ratio_branches(trajectory)
    ]
    gate = asyncio.Semaphore(_AT_ONCE)
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)

    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(name: str, number: int, found: Sequence[Segment]) -> Steps:
            tokens = [token for each in found for token in each.ids]
            async with gate:
                logp = await log_probs(session, endpoint.base_url, model, tokens)
            rewards = by_step(found, logp, beta)
            return {(name, number, node): value for node, value in rewards.items()}

        made = await asyncio.gather(*(one(*job) for job in jobs if job[2]))
    return {key: value for each in made for key, value in each.items()}


def usable(trajectory: Trajectory) -> bool:
    """Whether it may be learned from and its exact tokens and log-probs are known."""
    return trajectory.trainable and why_no_ratio(trajectory) is None


def by_step(segments: Sequence[Segment], logp: Sequence[float], beta: float) -> dict[int, float]:
    """beta x (logp - as sampled) added up over each sampled segment, by its node; `logp` has one
    number per token of all segments."""
    found: dict[int, float] = {}
    at = 0
    for each in segments:
        end = at + len(each.ids)
        if each.node is not None:
            found[each.node] = beta * (sum(logp[at:end]) - sum(each.logprobs))
        at = end
    return found


async def log_probs(
    session: aiohttp.ClientSession, base_url: str, model: str, tokens: Sequence[int]
) -> list[float]:
    """The log-prob of each token after those before it (0 for the first). Raises `ServerError`."""
    body = {
        "model": model, "prompt": list(tokens), "max_tokens": 0, "prompt_logprobs": 1,
        "temperature": 1.0,
    }  # fmt: skip
    try:
        async with session.post(f"{base_url.rstrip('/')}/completions", json=body) as reply:
            data = await reply.json()
            if reply.status != 200:
                raise ServerError(f"the model server refused to score tokens: {data!s:.200}")
            given = data["choices"][0]["prompt_logprobs"]
            return [0.0, *(float(value) for value in given[1:])]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"the model server gave no log-probs of a prompt: {error!r}") from error


def pair_accuracy(episodes: Sequence[Episode]) -> tuple[float, int]:
    """How often the better of two episodes of a group has the higher mean step reward (a tie counts
    half), and of how many pairs; half without any."""
    won: list[float] = []
    for members in groups(episodes).values():
        values = [statistics.fmean(one.score.steps or (0.0,)) for one in members if one.score]
        right = [one.success for one in members if one.score]
        good = [value for value, flag in zip(values, right, strict=True) if flag]
        bad = [value for value, flag in zip(values, right, strict=True) if not flag]
        won += [(a > b) + (a == b) / 2 for a in good for b in bad]
    return (statistics.fmean(won) if won else 0.5), len(won)


def step_heat(episode: Episode) -> list[tuple[str, float]]:
    """What each step said and its reward, for a person to read."""
    steps: Mapping[int, float] = dict(enumerate(episode.score.steps)) if episode.score else {}
    texts = [
        episode.trajectories[number].nodes[at].message.content for number, at in samples(episode)
    ]
    return [(text, steps.get(at, 0.0)) for at, text in enumerate(texts)]


SLIPS = 3
"""The scripted model gets one step in so many wrong."""


def replies(request: Request) -> str:
    """The scripted model: the next step of a sum, or its result; it slips until it is trained."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    said = [one.content for one in own if one.role == "assistant"]
    total = int(said[-1].rpartition("=")[2]) if said else numbers[0]
    if len(said) == len(numbers) - 1:
        return f"Answer: {total}"
    following = numbers[len(said) + 1]
    seed = request.sampling.seed if request.sampling.temperature else 0
    drawn = zlib.crc32(f"{seed}/{[one.content for one in own]}".encode())
    slip = int(drawn % SLIPS == 0 and not request.policy)
    return f"{total} + {following} = {total + following + slip}"
