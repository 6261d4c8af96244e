"""One command's view of a workflow in a home: open it, roll out, run a cycle, print a plan.

Joins the async inside to the sync edge: every command makes one `Session` and one `asyncio.run`.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError
from agentloop.ports import Split
from agentloop.records import Bundle, Episode, Purpose
from agentloop.store.archive import Archive
from agentloop.store.query import Fence, Query
from agentloop.trajectories.summary import Summary, summarise
from agentloop.workflows.load import Loaded, load
from agentloop.workflows.report import Cost, Report, cost_of
from agentloop.workspace import Workspace
from agentloop.workspace import home as find_home

if TYPE_CHECKING:
    from agentloop.workflows.forks import Fork


@dataclass
class Session:
    """A loaded workflow, its archive and the options of the command."""

    loaded: Loaded
    workspace: Workspace
    model: str | None
    tasks: str | None
    seed: int
    as_json: bool
    started: float
    run_id: str = ""
    given_home: Path | None = None

    @classmethod
    def open(
        cls, workflow: str, home: Path | None, workspace: Path | None, model: str | None,
        tasks: str | None, seed: int, settings: list[str] | None, as_json: bool,
    ) -> Session:  # fmt: skip
        """Check everything that can be checked before the home is touched."""
        from agentloop.workflows.assemble import check_model

        space = Workspace.find(workspace)
        loaded = load(workflow, space, opt.overrides(settings))  # type: ignore[arg-type]
        check_model(loaded, model, space)
        return cls(
            loaded=loaded, workspace=space, model=model, tasks=tasks, seed=seed, as_json=as_json,
            started=time.monotonic(), given_home=home,
        )  # fmt: skip

    @cached_property
    def home(self) -> Path:
        """The state directory, made when it is first needed: a dry run leaves no trace."""
        return find_home(self.given_home)

    @cached_property
    def archive(self) -> Archive:
        """The home's archive."""
        return Archive(self.home)

    def seconds(self) -> float:
        """Since the command began."""
        return round(time.monotonic() - self.started, 3)

    async def rollouts(
        self, n: int, *, purpose: Purpose, split: Split, bundle: str = "champion",
        resume: bool = False,
    ) -> tuple[list[Episode], Cost]:  # fmt: skip
        """`n` scored episodes of one bundle, and what they cost; with `resume` those of the run
        that was cut off."""
        from agentloop.lanes.bench import Order
        from agentloop.records import content_id
        from agentloop.workflows import runs
        from agentloop.workflows.assemble import Options, assemble, plan_hash

        plan = content_id(
            "plan", plan_hash(self.loaded, self.model, self.tasks, self.seed), n, bundle
        )
        name = self.loaded.name
        one = runs.open_run(
            self.archive, name, purpose=purpose, seed=self.seed, plan=plan, resume=resume
        )
        self.run_id = one.id
        with show.LiveProgress(show.console(as_json=True)) as progress:
            options = Options(
                run=self.run_id, seed=self.seed, model=self.model, tasks=self.tasks,
                workspace=self.workspace, home=self.home, progress=progress,
            )  # fmt: skip
            self._tell_unused()
            async with (
                runs.held(self.archive, one),
                assemble(self.loaded, self.archive, options) as kit,
            ):
                bench = kit.bench
                chosen = one.bundle or (bench.champion if bundle == "champion" else bundle)
                drawn = bench.tasks.draw(n, split=split, seed=self.seed)
                if not drawn:
                    raise UsageError(f"there is no {split} task in the source; add rows to it")
                if len(drawn) < n:
                    show.tell(f"only {len(drawn)} {split} tasks are available", err=True)
                order = Order(purpose=purpose, subject=purpose)
                of = self._bundle(chosen)
                runs.begin(self.archive, name, one, chosen)
                episodes = await bench.attempt(drawn, of, order)
                runs.finish(self.archive, one, self.home)
                return episodes, cost_of(kit.meter, self.archive, one.id, self.seconds())

    async def forks(self, order: Fork, bundle: str) -> list[Episode]:
        """Forks of one rollout, scored and logged as a run of their own. `bundle` is `same` (the
        rollout's), `champion` or an id."""
        from agentloop.workflows import forks, runs
        from agentloop.workflows.assemble import Options, assemble

        name = order.parent.bundle if bundle == "same" else self._chosen(bundle)
        self.run_id = forks.run_id(self.archive, order.parent.id, order.step, name)
        with show.LiveProgress(show.console(as_json=True)) as progress:
            options = Options(
                run=self.run_id, seed=self.seed, model=self.model, workspace=self.workspace,
                home=self.home, progress=progress,
            )  # fmt: skip
            one = runs.Run(
                id=self.run_id, plan=runs.FORK, purpose=order.parent.purpose, seed=self.seed
            )
            async with (
                runs.held(self.archive, one),
                assemble(self.loaded, self.archive, options) as kit,
            ):
                made = await forks.fork(
                    kit.bench, order, name,
                    begin=lambda: runs.begin(self.archive, self.loaded.name, one, name),
                )  # fmt: skip
        runs.finish(self.archive, one, self.home)
        return made

    def _chosen(self, bundle: str) -> str:
        if bundle != "champion":
            return self.archive.id(bundle, Bundle)
        pointer = self.archive.alias(f"{self.loaded.name}/champion")
        if pointer is None:
            raise UsageError(f"`{self.loaded.name}` has no champion in this home yet")
        return pointer.bundle

    def summary(self) -> Summary:
        """Counts over every episode of this run or cycle that the log has."""
        return summarise(self.archive.episodes(Query(run=self.run_id)))

    def _tell_unused(self) -> None:
        from agentloop.workflows.assemble import unused_text

        if note := unused_text(self.loaded, self.archive):
            show.tell(note, style="yellow", err=True)

    def _bundle(self, name: str) -> Bundle:
        return self.archive.get(name, Bundle)

    async def cycle(self, *, resume: bool, again: bool) -> Report:
        """Run, continue or report again the cycle of this workflow, home and seed."""
        from agentloop.cycle import open_cycle
        from agentloop.workflows.assemble import plan_hash

        plan = plan_hash(self.loaded, self.model, self.tasks, self.seed)
        self.run_id, finished = open_cycle(
            self.archive, self.loaded.name, self.seed, plan=plan, resume=resume, again=again
        )
        return finished or await self.cycle_of(self.run_id)

    async def cycle_of(self, cycle_id: str, under: Fence | None = None) -> Report:
        """Run, continue or report again the cycle of that id; `under` is a scheduler's lease."""
        from agentloop.cycle import cycle, reopen
        from agentloop.workflows.assemble import Options, assemble, plan_hash
        from agentloop.workflows.month import Ledger

        name, self.run_id = self.loaded.name, cycle_id
        plan = plan_hash(self.loaded, self.model, self.tasks, self.seed)
        finished = reopen(self.archive, name, cycle_id, plan=plan)
        if finished is not None:
            return finished
        budget = Ledger(self.archive, name).within(self.loaded.spec.budget, cycle_id)
        with show.LiveProgress(show.console(as_json=True)) as progress:
            options = Options(
                run=cycle_id,
                seed=self.seed,
                model=self.model,
                tasks=self.tasks,
                workspace=self.workspace,
                home=self.home,
                progress=progress,
                plan=plan,
                budget=budget,
            )
            self._tell_unused()
            async with assemble(self.loaded, self.archive, options) as kit:
                return await cycle(kit, under)

    # --- what a person sees ---

    def home_option(self) -> str:
        """` --home DIR` when one was given, for the next command to copy."""
        return f" --home {shlex.quote(str(self.given_home))}" if self.given_home else ""

    def same_options(self) -> str:
        """The options a follow-up command needs to mean the same."""
        parts = self.home_option()
        if self.model:
            parts += f" --model {shlex.quote(self.model)}"
        if self.tasks:
            parts += f" --tasks {shlex.quote(self.tasks)}"
        return parts

    def print_report(self, report: Report) -> None:
        """The verdict of a cycle, lane by lane."""
        from agentloop.cli.verdict import print_report

        print_report(self, report)
