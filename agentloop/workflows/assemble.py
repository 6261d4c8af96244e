"""From a workflow to live objects: the only module that knows concrete classes of every stage.

Goes in: a loaded workflow, an archive, options. Comes out: a `Kit`, inside an async context that
closes servers, sandboxes and connections however it ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from agentloop import __version__
from agentloop.errors import MissingDependency, UsageError
from agentloop.gateway.program import Program, resolve_command
from agentloop.gateway.server import Gateway
from agentloop.graphs.load import Graph, load_graph
from agentloop.graphs.program import program_graph
from agentloop.graphs.run import Runner
from agentloop.lanes.bench import Bench
from agentloop.lanes.gated import GatedBench
from agentloop.models.connect import Connected, ModelSpec, connect, parse
from agentloop.models.meter import Meter
from agentloop.models.scripted import Scripted
from agentloop.policies.registry import Policies
from agentloop.ports import Gate, Progress, Sandbox, Server, Tasks, Tool, Trainer, silent
from agentloop.records import (
    Budget,
    Bundle,
    Endpoint,
    Instruction,
    Json,
    Proposal,
    Sampling,
    Task,
    artifact_id,
    content_id,
)  # fmt: skip
from agentloop.refs import resolve
from agentloop.sandboxes.profile import open_sandbox
from agentloop.serving.launch import EmbeddedServer, LocalServer
from agentloop.serving.vllm import VllmServer, find_python
from agentloop.serving.weights import SMOLLM2
from agentloop.store.archive import Archive
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.tasks.files import Jsonl
from agentloop.tasks.spec import from_spec
from agentloop.tools.code import PythonTool
from agentloop.tools.spec import tool
from agentloop.training.dry import DryTrainer
from agentloop.training.job import ProcessTrainer
from agentloop.trajectories.codec import to_json
from agentloop.workflows.load import Loaded, build
from agentloop.workflows.models import ScopedJournal, check_calls, lend_model, prices
from agentloop.workflows.runs import checkpoints
from agentloop.workflows.schema import PartSpec, Workflow
from agentloop.workflows.seconds import counted
from agentloop.workflows.worlds import Worlds
from agentloop.workspace import Workspace, model_cache

PROBES = 64
"""At most so many are shown to each of two bundles."""
_TYPICAL_PROMPT, _TYPICAL_REPLY = 600, 150
"""Tokens a call, for a price before the first one; an order of magnitude, said as such."""


class Lane(Protocol):
    """Proposes a changed bundle from the log."""

    async def propose(self, bench: Bench) -> Proposal:
        """A proposal; `skipped` with the reason when there is nothing to propose."""
        ...


class Collector(Protocol):
    """Fills the log with the champion's practice."""

    async def collect(self, bench: Bench) -> Json:
        """Roll out, score, log; returns counts for the report."""
        ...


@dataclass(frozen=True)
class Options:
    """What a command adds to a workflow."""

    run: str
    seed: int
    workspace: Workspace
    home: Path
    model: str | None = None
    tasks: str | None = None
    progress: Progress = silent
    plan: str = ""
    budget: Budget | None = None
    """Instead of the workflow's own: what is left of its month as well."""
    live: bool = False
    """For conversations: no call is journaled or cached, no step kept."""


@dataclass
class Kit:
    """Everything one run or cycle needs."""

    name: str
    bench: Bench
    collector: Collector
    lanes: dict[str, Lane]
    gate: Gate
    meter: Meter
    heldout_n: int
    lane_n: int
    plan: str
    probes: Sequence[Task] = ()
    """What a challenger must not lose, and what nobody can solve."""
    canary_first: bool = False

    @property
    def cycle_id(self) -> str:
        """The run's id."""
        return self.bench.run

    @property
    def alias(self) -> str:
        """The pointer that serves this workflow."""
        return alias_of(self.name)

    @property
    def promoted(self) -> str:
        """The pointer that a cycle's promotion moves."""
        return canary_of(self.name) if self.canary_first else self.alias


def alias_of(workflow: str) -> str:
    """Name of the champion's pointer."""
    return f"{workflow}/champion"


def canary_of(workflow: str) -> str:
    """Name of the pointer to the bundle that gets a share of conversations."""
    return f"{workflow}/canary"


def check_model(loaded: Loaded, model: str | None, workspace: Workspace | None = None) -> ModelSpec:
    """What the model name means; raises `UsageError` before anything is written when it or a part
    of the workflow cannot work (unknown form, no script, no weights; a wrong key, no module)."""
    loaded.check()
    spec = parse(model or loaded.spec.model)
    if spec.kind == "scripted" and loaded.spec.scripted is None:
        raise UsageError(
            f"`{loaded.name}` has no `scripted` section; choose another --model or add one"
        )
    check_calls(loaded.spec, spec)
    if spec.served:
        _weights(spec)
    if spec.kind == "vllm":
        find_python((workspace or Workspace.find()).roots)
    return spec


def plan_hash(loaded: Loaded, model: str | None, tasks: str | None, seed: int) -> str:
    """What a cycle must not change between its start and its resumption."""
    rows = Path(tasks).read_bytes().hex() if tasks and Path(tasks).is_file() else ""
    return content_id(
        "plan",
        loaded.digest(),
        to_json(parse(model or loaded.spec.model)),
        rows,
        tasks,
        seed,
        __version__,
    )


def price_of(loaded: Loaded, model: str | None, calls: int) -> float | None:
    """US dollars for so many typical calls; 0 for a local model, `None` when unknown."""
    spec = parse(model or loaded.spec.model)
    meter = Meter(prices=prices(loaded.spec, spec))
    return meter.estimate(calls, _TYPICAL_PROMPT, _TYPICAL_REPLY, model=spec.model or "*")


@asynccontextmanager
async def assemble(loaded: Loaded, archive: Archive, options: Options) -> AsyncIterator[Kit]:
    """A kit; everything it started is stopped at the end."""
    spec = loaded.spec
    model_spec = check_model(loaded, options.model, options.workspace)
    async with AsyncExitStack() as stack:
        sandbox = open_sandbox(spec.sandbox, options.workspace)
        stack.push_async_callback(sandbox.close)
        server, endpoint, base = await _serve(model_spec, options, stack)
        transport = connect(model_spec, scripted=_script(loaded, model_spec), endpoint=endpoint)
        stack.push_async_callback(transport.close)
        budget = options.budget or spec.budget
        before = 0.0 if options.live else stack.enter_context(counted(archive, options.run))
        spent = archive.spent(options.run)
        meter = Meter(
            budget, prices(spec, model_spec), spent=spent,
            unconfirmed=archive.unconfirmed(options.run), seconds=before,
        )  # fmt: skip
        model = lend_model(
            spec, model_spec, transport, meter=meter, stack=stack,
            journal=None if options.live else ScopedJournal(archive, options.run),
        )  # fmt: skip
        graph = await _agent(loaded, options, stack)
        worlds = open_worlds(loaded, sandbox)
        bench = GatedBench(
            archive=archive, tasks=_tasks(loaded, model_spec, options),
            runner=Runner(
                graph,
                # a cycle (it has a plan) is resumed from the journal: checkpoints would only cost
                # and a world is not among the steps: its calls are made again in a new one
                checkpoints=(
                    None if options.plan or options.live or worlds is not None
                    else checkpoints(options.home, options.run)
                ),
                own=worlds.own if worlds is not None else None,
                native_tools=not model_spec.local,
                kept=archive.calls_of if spent.calls else None,  # it goes on
            ),
            model=model, reward=loaded.build(_reward(spec, model_spec)),
            tools=open_tools(loaded, sandbox), limits=spec.limits,
            decoding=Sampling(**spec.decoding.model_dump()), embedder=WordLlamaEmbedder(),
            sandbox=sandbox, home=options.home, policies=Policies(options.home / "policies"),
            trainer=_trainer(model_spec, options.progress), server=server, base_model=base,
            workflow=loaded.name, run=options.run, seed=options.seed,
            champion=seed_champion(loaded, archive), progress=options.progress,
            concurrency=spec.concurrency,
            max_rollouts=budget.rollouts, gate_n=spec.heldout.n + spec.heldout.lanes,
        )  # fmt: skip
        yield Kit(
            name=loaded.name, bench=bench, collector=loaded.build(spec.collect),
            lanes={name: loaded.build(part) for name, part in spec.lanes.items()},
            gate=loaded.build(spec.gate), meter=meter, heldout_n=spec.heldout.n,
            lane_n=spec.heldout.lanes, plan=options.plan, probes=probes(loaded),
            canary_first=spec.serve.promote == "canary",
        )  # fmt: skip


def seed_champion(loaded: Loaded, archive: Archive) -> str:
    """The serving bundle's id; the workflow's own text becomes the first one."""
    current = archive.alias(alias_of(loaded.name))
    if current is not None:
        return current.bundle
    instruction = archive.put(Instruction(text=loaded.spec.instruction.strip()))
    bundle = archive.put(Bundle(instruction=instruction))
    archive.point(
        alias_of(loaded.name), bundle, reason="the workflow's own instruction", scope=loaded.name
    )
    return bundle


def probes(loaded: Loaded) -> list[Task]:
    """The workflow's probes: all rows of a file that are not marked as training, otherwise as many
    held-out tasks as `PROBES`."""
    if loaded.spec.probes is None:
        return []
    source: Tasks = loaded.build(loaded.spec.probes)
    if isinstance(source, Jsonl):
        source = replace(source, heldout=1.0)
    return source.draw(PROBES, split="heldout", seed=0)


def unused_text(loaded: Loaded, archive: Archive) -> str:
    """What to tell a person who edited `instruction:` after the first champion was made from it;
    empty when there is nothing to tell."""
    text = Instruction(text=loaded.spec.instruction.strip())
    known = {name for name, _, _ in archive.artifacts(Instruction)}
    if archive.alias(alias_of(loaded.name)) is None or artifact_id(text) in known:
        return ""
    return (
        "note: the champion in this home serves, not the edited `instruction` of the workflow; "
        f"to serve that text: agentloop instructions edit {loaded.name} FILE"
    )


async def _agent(loaded: Loaded, options: Options, stack: AsyncExitStack) -> Graph:
    """The workflow's graph; a program is one as well, with an endpoint to call."""
    spec = loaded.spec
    if not spec.command:
        return load_graph(spec.graph, options.workspace.roots, loaded.folder)
    gateway = await stack.enter_async_context(Gateway())
    return program_graph(Program(resolve_command(spec.command, loaded.folder), gateway).drive)


async def _serve(
    spec: ModelSpec, options: Options, stack: AsyncExitStack
) -> tuple[Server | None, Endpoint | None, Path | None]:
    if spec.kind == "scripted":
        return None, None, Path("scripted")
    if not spec.served:
        return None, None, None
    weights, logs = _weights(spec), options.home / "logs"
    server: LocalServer = (
        VllmServer(weights, logs, python=find_python(options.workspace.roots))
        if spec.kind == "vllm"
        else EmbeddedServer(weights, logs)
    )
    stack.push_async_callback(server.stop)
    return server, await server.start(), weights


def _weights(spec: ModelSpec) -> Path:
    path = Path(spec.path).expanduser() if spec.path else model_cache() / SMOLLM2
    if not (path / "config.json").is_file():
        if spec.path:
            raise UsageError(f"`{path}` is not a model directory (no config.json in it)")
        raise MissingDependency(f"the local model {SMOLLM2}", "agentloop setup local")
    return path


def _script(loaded: Loaded, spec: ModelSpec) -> Connected | None:
    if spec.kind != "scripted" or loaded.spec.scripted is None:
        return None
    replies = loaded.spec.scripted.replies
    if ":" in replies:
        return Scripted(resolve(replies, loaded.folder))  # type: ignore[arg-type]
    return Scripted(loaded.folder / replies)


def _tasks(loaded: Loaded, spec: ModelSpec, options: Options) -> Tasks:
    if options.tasks:
        return from_spec(options.tasks, Path.cwd())
    if spec.kind == "scripted" and loaded.spec.scripted is not None:
        return build(loaded.spec.scripted.tasks, loaded.folder)  # type: ignore[no-any-return]
    return loaded.build(loaded.spec.tasks)  # type: ignore[no-any-return]


def _reward(workflow: Workflow, spec: ModelSpec) -> PartSpec:
    scripted = workflow.scripted if spec.kind == "scripted" else None
    return (scripted.reward if scripted else None) or workflow.reward


def open_tools(loaded: Loaded, sandbox: Sandbox) -> list[Tool]:
    """The tools that a workflow lends to its agent."""
    worlds = open_worlds(loaded, sandbox)
    made: list[Tool] = [*worlds.tools()] if worlds is not None else []
    for name in loaded.spec.tools:
        if name == "python" and worlds is not None:
            continue
        if name == "python":
            made.append(PythonTool(sandbox))
        else:
            made.append(tool(resolve(name, loaded.folder)))  # type: ignore[arg-type]
    return made


def open_worlds(loaded: Loaded, sandbox: Sandbox) -> Worlds | None:
    """What makes each rollout's world; `None` for a workflow without one."""
    if loaded.spec.world is None:
        return None
    return Worlds(partial(loaded.build, loaded.spec.world), sandbox, "python" in loaded.spec.tools)


def _trainer(spec: ModelSpec, progress: Progress) -> Trainer | None:
    if spec.kind == "scripted":
        return DryTrainer()
    return ProcessTrainer(progress=progress) if spec.served else None


__all__ = [
    "Collector",
    "Kit",
    "Lane",
    "Options",
    "alias_of",
    "assemble",
    "canary_of",
    "check_model",
    "plan_hash",
    "price_of",
    "probes",
    "seed_champion",
]
