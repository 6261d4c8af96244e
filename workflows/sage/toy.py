"""A table that writes programs statement by statement, in the real world of apps.

Goes in: a rule of reward and a seed. Comes out: how often both tasks of a chain are solved and how
often a function made on the first is used on the second, after as many rollouts for every rule. The
decision worth knowing: a statement is forgotten now and then whoever wrote it (`SLIP`), as with a
model, so a long program fails more often than a short one, which no training of the table can
change; what it can learn is to write a function once and to call it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentloop.datasets.rl_rows import rl_rows
from agentloop.lanes.chain import with_library, written
from agentloop.lanes.function_store import FunctionStore, sound
from agentloop.records import Episode, Json, Task
from agentloop.refs import load_file
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import Profile
from agentloop.tools.world_code import WorldCode
from agentloop.trajectories.redact import Redactor
from agentloop.worlds.apps.calls import CALLS
from agentloop.worlds.apps.tasks import AppsTasks, chains, reached
from agentloop.worlds.apps.world import Apps

if TYPE_CHECKING:
    from agentloop.training.toy import TabularPolicy

SAMPLES, UPDATES, FINAL = 16, 150, 256
"""Members of a group; updates; chains of each family that the result is taken from."""
SLIP = 0.08
"""The chance that a statement is forgotten (`pass` stands in its place)."""
DIRECT, DEFINE, CALL = range(3)
"""The first choice: statements one after the other, the same as a function that is then called, or
a call of a function that is there."""
KEEP, VALUES, LEAVE = range(3)
"""Then one for each statement: as it stands, with the task's values written into it (only the first
one can be), or left out (only one with parameters can be)."""
OPTIONS = 3
PROCEDURES = {
    "reschedule": """\
found = calendar_find(title=title)
event = found[0]
calendar_move(event=event["id"], day=day)
guests = event["guests"]
for guest in guests:
    messages_send(to=guest, text=title + " is now on " + day)""",
    "file_note": """\
found = notes_find(title=title)
note = found[0]
text = note["text"]
files_write(path=path, text=text)
key = note["id"]
notes_delete(note=key)""",
    "buy_cheapest": """\
found = shop_search(kind=kind)
offers = [each for each in found if each["stock"] > 0]
best = min(offers, key=lambda each: each["price"])
key = best["id"]
shop_put(product=key, count=count)
shop_buy()""",
    "forward_all": """\
who = sender
found = messages_from(name=who)
keys = [each["id"] for each in found]
for key in keys:
    messages_forward(message=key, to=to)
    messages_archive(message=key)""",
}
LINES = 6
SETTINGS: dict[str, Json] = {"reduction": "constant", "clip": None}

_parts: Any = load_file(Path(__file__).with_name("parts.py"))


def program(task: Task, chosen: Sequence[int], slips: Sequence[bool]) -> str:
    """The code of one choice: `chosen` begins with the way, `slips` says which were forgotten."""
    given: Any = task.data["arguments"]
    call = f"{task.family}({', '.join(map(repr, given.values()))})"
    if chosen[0] == CALL:
        return f"{'pass' if slips[0] else call}\nfinish()"
    lines = []
    for place, line in enumerate(PROCEDURES[task.family].split("\n")):
        gone = slips[1 + place] or (chosen[1 + place] == LEAVE and _filled(line, given) != line)
        value = chosen[1 + place] == VALUES and place == 0
        empty = f"{line[: len(line) - len(line.lstrip())]}pass"
        lines.append(empty if gone else _filled(line, given) if value else line)
    if chosen[0] == DIRECT:
        values = [f"{name} = {value!r}" for name, value in given.items()]
        return "\n".join([*values, *lines, "finish()"])
    body = [f"def {task.family}({', '.join(given)}):", *(f"    {line}" for line in lines)]
    return "\n".join([*body, "pass" if slips[0] else call, "finish()"])


def _filled(line: str, given: dict[str, Any]) -> str:
    """The statement with values instead of parameters."""
    for name, value in given.items():
        line = re.sub(rf"(?<=[=+(] ){name}\b|(?<==){name}\b", lambda _, v=value: repr(v), line)
    return line


@dataclass
class Bench:
    """Runs programs in worlds of their own; the same one is run once."""

    sandbox: MontySandbox
    known: dict[tuple[str, str, str], Episode] = field(default_factory=dict)
    stores: dict[tuple[str, str], FunctionStore] = field(default_factory=dict)

    async def run(self, task: Task, code: str, store: FunctionStore) -> Episode:
        """The scored end of one program, with the functions of `store` at hand."""
        functions = [one.function for one in store.latest()]
        key = (task.id, code, "\n".join(one.code for one in functions))
        if key not in self.known:
            world = Apps()
            world.reset(task, 0)
            tool = WorldCode(world, self.sandbox, functions)
            await tool.call({"code": code})
            made = Episode(
                id="", task=task, bundle="toy", purpose="collect", run="", seed=0,
                state={**world.snapshot(), **tool.state()},
            )  # fmt: skip
            made = replace(made, score=reached(made))
            self.known[key] = replace(made, state=_small(made))
        return self.known[key]

    async def library(self, episode: Episode) -> FunctionStore:
        """What the next task of the chain may call; one that holds the same is the same one."""
        made = written(episode)
        key = (episode.task.id, "\n".join(one.code for one in made))
        if key not in self.stores:
            self.stores[key] = FunctionStore()
            for function in await sound(made, self.sandbox, CALLS):
                self.stores[key].add(function, episode.task)
        return self.stores[key]


def _small(episode: Episode) -> dict[str, Any]:
    """The state, with the tables that did not change held once for all episodes."""
    start: Any = episode.task.data["start"]
    tables: Any = episode.state["tables"]
    same = {name: start[name] if start[name] == one else one for name, one in tables.items()}
    return {**episode.state, "tables": same}


@dataclass
class Table:
    """The policy: a row of choices for each family, position, way and place."""

    policy: TabularPolicy
    pairs: list[list[Task]]
    slips: random.Random
    bench: Bench

    async def rollouts(self, run: str, samples: int) -> list[Episode]:
        """`samples` chains of each pair, first and second tasks, scored."""
        first = await self._position(1, run, samples, {})
        stores = {}
        for (at, member), episode in first.items():
            stores[at, member] = await self.bench.library(episode)
        second = await self._position(2, run, samples, stores)
        return [*first.values(), *second.values()]

    async def _position(
        self, position: int, run: str, samples: int, stores: dict[tuple[int, int], FunctionStore]
    ) -> dict[tuple[int, int], Episode]:
        import torch

        from agentloop.training.toy_rows import Turn, episode

        places = [(at, member) for at in range(len(self.pairs)) for member in range(samples)]
        empty = FunctionStore()
        prompts = [
            3 * at + (0 if position == 1 else 1 + bool(stores[at, who].latest()))
            for at, who in places
        ]
        drawn = self.policy.sample(torch.tensor(prompts)[:, None], 1 + LINES)
        made = {}
        for (at, who), ids, logp in zip(
            places, drawn.tokens.tolist(), drawn.logp.tolist(), strict=True
        ):
            store = stores.get((at, who), empty)
            task = with_library(self.pairs[at][position - 1], store, position, who)
            end = 2 if ids[1] == CALL else len(ids)
            slips = [self.slips.random() < SLIP for _ in ids[1:]]
            ran = await self.bench.run(
                self.pairs[at][position - 1], program(task, ids[1:end], slips[: end - 1]), store
            )
            turn = Turn(shown=(ids[0],), ids=tuple(ids[1:end]), logprobs=tuple(logp[: end - 1]))
            one = episode(f"{run}-{position}-{at}-{who}", task.id, [turn], 0.0, run=run)
            made[at, who] = replace(one, task=task, score=ran.score, state=ran.state, sample=who)
        return made


def table(seed: int, rate: float, bench: Bench) -> Table:
    """A uniform start, the same for the same seed, slips and sampling included."""
    import torch

    from agentloop.training.toy import Learning, TabularPolicy

    tasks = AppsTasks(families=tuple(PROCEDURES), siblings=2).draw(
        2 * len(PROCEDURES), split="train", seed=0
    )
    rows = 1 + OPTIONS * LINES
    policy = TabularPolicy(
        torch.zeros(3 * len(PROCEDURES) * rows, OPTIONS, dtype=torch.float64),
        learning=Learning("sgd", rate), context=_context(rows), seed=seed,
    )  # fmt: skip
    return Table(policy, list(chains(tasks)), random.Random(seed), bench)


def _context(rows: int) -> Callable[[Any], Any]:
    """The row of a prefix: the prompt, then the way and the place."""

    def context(prefix: Any) -> Any:
        sampled = prefix.shape[1] - 1
        inside = 0 if not sampled else 1 + prefix[:, 1] * LINES + sampled - 1
        return prefix[:, 0] * rows + inside

    return context


async def learn(
    rule: str, seed: int, rate: float, bench: Bench, updates: int = UPDATES
) -> dict[str, float]:
    """One rule: shares of the final policy's chains, and the rollouts it took."""
    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy_rows import update

    settings, redact = ReplaySettings.model_validate(SETTINGS), Redactor({})
    credit, here = _parts.ChainCredit(reward=rule), table(seed, rate, bench)
    made = 0
    for number in range(updates):
        episodes = await here.rollouts(str(number), SAMPLES)
        made += len(episodes)
        rows = rl_rows(episodes, credit.assign(episodes), redact=redact)
        if rows := [row for row in rows if any(row.advantages)]:
            update(here.policy, rows, settings, seed=number)
    last = _parts.pairs(await here.rollouts("last", FINAL))
    both = [first.success and second.success for first, second in last]
    used = [bool(_parts.used_skills(first, second)) for first, second in last]
    wrote = [bool(written(first)) for first, _ in last]
    return {
        f"{rule}.both": _share(both), f"{rule}.use": _share(used), f"{rule}.write": _share(wrote),
        f"{rule}.first": _share([first.success for first, _ in last]),
        f"{rule}.second": _share([second.success for _, second in last]),
        f"{rule}.rollouts": made,
    }  # fmt: skip


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def bench() -> Bench:
    """A sandbox of its own, under the limits of the profile `monty`."""
    return Bench(MontySandbox(Profile(backend="monty")))
