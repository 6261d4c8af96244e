"""What only this workflow has: worked solutions to start from, rounds that may imitate or replay.

Goes in: the bench. Comes out: a proposal: the policy after some rounds of rollouts and one phase of
learning each. The decision worth knowing: an arm is the keys of this one lane and nothing else, so
that arms differ in what they learn from a rollout and not in how it was made. A champion without a
policy is taught by worked solutions first, few enough that it is right about half of the time.
"""

from __future__ import annotations

import re
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Tokenizer

from agentloop.datasets.credit import Credits, reward
from agentloop.datasets.filters import Chosen
from agentloop.datasets.groups import countable, groups
from agentloop.datasets.makers import Made, RLRows
from agentloop.datasets.manifest import freeze, load_rows
from agentloop.datasets.recipe import Recipe
from agentloop.datasets.replay import Replay, ReplayBuffer
from agentloop.errors import UsageError
from agentloop.lanes.bench import Bench
from agentloop.lanes.nested import A_ROW_MAKER
from agentloop.lanes.online import Online, Round, rounds_of, with_policy
from agentloop.lanes.phase import API, METHODS, Lesson, learn, skip
from agentloop.ports import part
from agentloop.records import Episode, Json, Message, Proposal, Request, Row, Score, Task
from agentloop.rewards.verify import DatasetScore
from agentloop.store.query import Query
from agentloop.training.schedules import CosineRamp
from agentloop.trajectories.redact import Redactor
from agentloop.trajectories.rows_file import NAME

END = "<|im_end|>"
"""What the model ends its turn with."""


# --- the task -----------------------------------------------------------------------------------


def solution(question: str, *, carries: bool = True) -> str:
    """The worked solution of `Add the complex numbers: (a.0 + b.0i) + (c.0 + d.0i)`: one line for
    the real parts, one for the imaginary, the answer. Without `carries` a sum of ten or more is
    written as its last digit, which is wrong."""
    a, b, c, d = (int(one) for one in re.findall(r"(\d+)\.0", question))
    sums = [one if carries else one % 10 for one in (a + c, b + d)]
    return f"{a}+{c}={sums[0]}\n{b}+{d}={sums[1]}\nAnswer: {sums[0]}+{sums[1]}i"


@part
class Right:
    """1 or 0 by the library's grader, which gives parts to answers that are near: an advantage is
    to be for what counts as success and for nothing else."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """See `DatasetScore.score`."""
        given = await DatasetScore().score(episodes)
        return [replace(one, value=float(one.success)) for one in given]


# --- learning -----------------------------------------------------------------------------------


@part
class Also:
    """Rows of a kind, and earlier ones once more."""

    rows: Annotated[Any, A_ROW_MAKER]
    again: Annotated[tuple[Row, ...], Field(exclude=True)] = ()

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`."""
        made: Made = self.rows.make(chosen, credits=credits, system=system, redact=redact)
        return replace(made, rows=(*made.rows, *self.again))


@part
class Rounds(Online):
    """Rounds of rollouts by the newest policy and one phase of learning; `rows`, `credit`,
    `select`, `method` and `settings` say what a phase is."""

    rows: Annotated[Any, A_ROW_MAKER] = RLRows()
    ramp: CosineRamp = CosineRamp(steps=1, peak=0.0)
    """Weight of rows that are imitated once more, by the number of rounds before."""
    replay: Replay = Replay()
    drawn: Annotated[int, Field(ge=1)] = 64
    """Rows of one replay, at most."""
    worked: Annotated[int, Field(ge=1)] = 128
    """So many worked solutions teach a champion that has no policy yet."""
    carries: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """Share of them that carry; the others teach the habit of not doing so."""
    teaching: dict[str, Json] = Field(default_factory=dict)
    """Settings of that."""

    async def propose(self, bench: Bench) -> Proposal:
        """See `Online.propose`."""
        if bench.base_model is None or bench.trainer is None:
            return skip(API)
        champion = bench.bundle(bench.champion)
        if "agent" not in champion.policies and vocabulary(bench).is_file():
            taught = with_policy(champion, await self.teach(bench))
            bench = replace(bench, champion=bench.archive.put(taught))
        return await super().propose(bench)

    async def teach(self, bench: Bench) -> str:
        """The start of all arms: a policy that imitated worked solutions of training tasks."""
        tasks = bench.tasks.draw(self.worked, split="train", seed=bench.seed)
        system = bench.instruction(bench.bundle(bench.champion)).text
        encode = encoder(vocabulary(bench))
        rows = []
        for at, task in enumerate(tasks):
            carries = int((at + 1) * self.carries) > int(at * self.carries)
            rows.append(worked_row(task, system, encode(solution(task.prompt, carries=carries))))
        dataset = freeze(rows, {"worked": len(rows)}, bench.home / "datasets")
        bench.archive.put(dataset)
        learned = await learn(bench, dataset, Lesson(METHODS["sft"], self.teaching, "agent", None))
        return learned.policy

    async def _learn(
        self, bench: Bench, recipe: Recipe, episodes: Sequence[Episode],
        begun: tuple[Round, dict[str, Json]],
    ) -> tuple[Round, dict[str, float]]:  # fmt: skip
        again = self.again(bench, begun[0].number)
        system = bench.instruction(bench.bundle(bench.champion)).text
        rows = Also(rows=self.rows, again=tuple(again)) if again else self.rows
        return await super()._learn(
            bench, replace(recipe, rows=rows, system=system), episodes, begun
        )

    def again(self, bench: Bench, number: int) -> list[Row]:
        """Rows of earlier rounds to imitate once more in round `number`. The buffer follows from
        the log, so a resumed round draws the same."""
        buffer, drawn = ReplayBuffer(self.replay), list[Row]()
        if not self.ramp.peak:
            return drawn
        made = bench.archive.episodes(Query(run=bench.run, purpose="train"))
        for past in rounds_of(bench.archive, bench.run):
            if past.number >= number:
                break
            self._draw(buffer, past.number)
            counted = [one for one in made if countable(one) and sampler(one) == past.sampled_by]
            buffer.note([statistics.fmean(map(reward, each)) for each in groups(counted).values()])
            if past.dataset:
                rows = load_rows(bench.home / "datasets" / past.dataset / NAME)
                fresh = [row for row in rows if row.policy == past.sampled_by]
                buffer.add(fresh, step=past.number)
        return self._draw(buffer, number)

    def _draw(self, buffer: ReplayBuffer, number: int) -> list[Row]:
        weight = self.ramp.at(number - 1)
        if weight <= 0.0:
            return []
        rows = buffer.draw(self.drawn, step=number, seed=number)
        return [replace(row, weight=weight) for row in rows]


def sampler(episode: Episode) -> str | None:
    """The version that sampled it; `None` is the base model."""
    nodes = (node for one in episode.trajectories for node in one.nodes if node.sampled)
    return next((node.policy for node in nodes), None)


def vocabulary(bench: Bench) -> Path:
    """The file of the model's tokenizer; the scripted model has none and is not taught."""
    return Path(str(bench.base_model)) / "tokenizer.json"


def encoder(file: Path) -> Callable[[str], tuple[int, ...]]:
    """Token ids of what a model says in one turn, its end included. Raises `UsageError` when the
    model knows no end of a turn."""
    tokenizer = Tokenizer.from_file(str(file))
    end = tokenizer.token_to_id(END)
    if end is None:
        raise UsageError(
            f"the tokenizer `{file}` has no `{END}`; worked solutions need a chat model"
        )
    return lambda text: (*tokenizer.encode(text, add_special_tokens=False).ids, end)


def worked_row(task: Task, system: str, ids: tuple[int, ...]) -> Row:
    """The task and what is to be imitated."""
    prompt = (Message(role="system", content=system), Message(role="user", content=task.prompt))
    return Row(
        episode=f"worked-{task.id}", prompt=prompt, segments=(ids,), sampled=(True,), group=task.id
    )


# --- the scripted model ---------------------------------------------------------------------------

SLIPS = 2
"""One answer in so many is wrong until it is trained by a round."""


def replies(request: Request) -> str:
    """The solution, or one that is 1 off: by chance at temperature 1, always the same at 0."""
    question = request.messages[-1].content
    seed = request.sampling.seed if request.sampling.temperature else 0
    slips = zlib.crc32(f"{seed}/{question}".encode()) % SLIPS == 0
    right = solution(question)
    if slips and not (request.policy and not request.sampling.temperature):
        return right.replace("Answer: ", "Answer: 1")
    return right
