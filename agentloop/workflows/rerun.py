"""A recorded rollout, made again offline: its graph runs, its model and its tools are the record.

Goes in: an episode of the log and the workflow that made it. Comes out: the first difference from
what was stored, or none. Decision: everything is compared but times; failures that the clock or a
person caused (`UNREPEATABLE`) cannot be made again and are said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache

from agentloop.graphs.load import Graph, load_graph
from agentloop.graphs.recorded import Kept, RecordedModel, calls_of
from agentloop.graphs.recorded_tools import recorded_graph, recorded_tools, told_only
from agentloop.graphs.run import Runner
from agentloop.graphs.setup import digest_of, shape_of
from agentloop.ports import Tool
from agentloop.records import (
    Completion,
    Episode,
    Setup,
    Trajectory,
    attempt_of,
    order_id,
)
from agentloop.sandboxes.profile import open_sandbox
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.trajectories.codec import from_json, to_json
from agentloop.workflows.assemble import open_tools
from agentloop.workflows.load import Loaded
from agentloop.workspace import Workspace

UNREPEATABLE = frozenset({"time_limit", "cancelled", "budget"})
"""Reasons that lie outside of the record: the clock, a person, what other rollouts spent."""


@dataclass(frozen=True)
class Replayed:
    """What came of one replay: identical, different, or not possible; each in one sentence."""

    episode: str
    state: str
    """`identical`, `different` or `impossible`."""
    reason: str = ""


class Replays:
    """Makes episodes of one workflow again."""

    def __init__(self, archive: Archive, loaded: Loaded, workspace: Workspace) -> None:
        self._archive = archive
        tools = open_tools(loaded, open_sandbox(loaded.spec.sandbox, workspace))
        self._tools: dict[str, Tool] = {tool.spec.name: tool for tool in tools}
        parts = [loaded.spec.collect, *loaded.spec.lanes.values()]
        self._named = {loaded.spec.graph, *(str(one.fields.get("graph")) for one in parts)}
        self._graph = cache(lambda name: load_graph(name, workspace.roots, loaded.folder))

    async def replay(self, episode: Episode) -> Replayed:
        """Run the episode's graph on its record. Raises what loading the graph raises."""
        reason = impossible(episode)
        if reason:
            return Replayed(episode.id, "impossible", reason)
        setup = setup_of(episode)
        if setup.graph not in self._named and ":" in setup.graph:  # it may come from anybody's file
            reason = f"its graph `{setup.graph}` is not one that the workflow names"
            return Replayed(episode.id, "impossible", reason)
        graph: Graph = self._graph(setup.graph)
        change = changed(setup, graph, self._tools)
        if change:
            return Replayed(episode.id, "different", change)
        calls = calls_of(episode, journal_of(self._archive, episode))
        model = RecordedModel(episode, calls)
        made = await self._run(episode, graph, model)
        if model.missing:
            return Replayed(episode.id, "impossible", model.missing)
        exact = all(call.exact for call in calls)
        difference = model.difference or first_difference(episode, made, usage=exact)
        state = "different" if difference else "identical"
        return Replayed(episode.id, state, difference)

    async def _run(self, episode: Episode, graph: Graph, model: RecordedModel) -> Episode:
        setup = setup_of(episode)
        runner = Runner(recorded_graph(episode, model, graph), native_tools=setup.native_tools)
        tools = recorded_tools(episode, model, self._tools)
        with told_only(model):
            [made] = await runner.run(
                [attempt_of(episode)], model=model, tools=tools, limits=setup.limits
            )
        # `changed` has compared the lent tools; of a lane's own only the name is known.
        return replace(made, setup=replace(setup_of(made), tools=setup.tools))


def impossible(episode: Episode) -> str:
    """Why an episode cannot be made again; empty when it can."""
    if episode.setup is None:
        return "it was recorded by an earlier release"
    redacted = any(one.redacted for one in episode.trajectories)
    if not redacted and attempt_of(episode).id != order_id(episode.id):
        return "it was cut out of another rollout, or changed"
    if not episode.setup.graph:
        return "its agent is a program or a client of its own, which is not run from a record"
    if episode.state:
        return "it acted in a world, and the record has that world's end alone"
    if episode.failure is not None and episode.failure.reason in UNREPEATABLE:
        return f"it ended by {episode.failure.reason}, which is not in the record"
    return ""


def setup_of(episode: Episode) -> Setup:
    """What the rollout was given; asked only where `impossible` has nothing to say."""
    assert episode.setup is not None
    return episode.setup


def journal_of(archive: Archive, episode: Episode) -> list[Kept]:
    """The replies that the log kept for the episode's calls."""
    entries = archive.read(Query(kinds=("call",), prefix=f"{order_id(episode.id)}/"))
    return [
        Kept(entry.key.rpartition("/")[2], from_json(Completion, entry.body)) for entry in entries
    ]


def changed(setup: Setup, graph: Graph, tools: Mapping[str, Tool]) -> str:
    """What is not as it was before anything runs; empty when all is."""
    for name, digest in setup.tools.items():
        if name in tools and digest_of(tools[name].spec) != digest:
            return f"the name, description or schema of the tool `{name}` was changed"
    if shape_of(graph) != setup.shape:
        return f"the nodes or edges of the graph `{setup.graph}` were changed"
    return ""


def first_difference(old: Episode, new: Episode, *, usage: bool = True) -> str:
    """The first thing in which two records differ, but for their names and times; empty when they
    are the same. Without `usage` what was used is not compared."""
    old, new = _logged(_timeless(old), old), _logged(_timeless(new), old)
    for before, after in zip(old.trajectories, new.trajectories, strict=True):
        if (found := _nodes_differ(before, after)) or before != after:
            return found or "the tokens of the calls join in another way (drift)"
    if not usage:
        new = replace(new, usage=old.usage)
    one, two = asdict(old), asdict(new)
    for name in ("failure", "answer"):
        if one[name] != two[name]:
            return f"`{name}` is {_short(two[name])} instead of {_short(one[name])}"
    if old.setup and new.setup and (found := _setups_differ(old.setup, new.setup)):
        return found
    for name in one:
        if one[name] != two[name]:
            return f"`{name}` is {_short(two[name])} instead of {_short(one[name])}"
    return ""


def _setups_differ(before: Setup, after: Setup) -> str:
    for name in sorted({*before.offered, *after.offered}):
        if before.offered.get(name) != after.offered.get(name):
            return f"the tool `{name}`, which the agent offers, was changed, added or left out"
    if len(before.results) != len(after.results):
        return f"the agent made {len(after.results)} of {len(before.results)} calls of lent tools"
    one, two = asdict(before), asdict(after)
    for name in one:
        if one[name] != two[name]:
            what = name.replace("_", " ")
            return f"its {what} is {_short(two[name])} instead of {_short(one[name])}"
    return ""


def _nodes_differ(before: Trajectory, after: Trajectory) -> str:
    number = 0
    for old, new in zip(before.nodes, after.nodes, strict=False):
        number += old.sampled
        if old != new:
            what = f"the reply of call {number}" if old.sampled else f"the {old.message.role} text"
            where = "" if old.sampled else f" before call {number + 1}"
            fields = [key for key, value in asdict(old).items() if value != asdict(new)[key]]
            return f"{what}{where} differs in its {', '.join(fields).replace('_', ' ')}"
    made, want = (sum(n.sampled for n in one.nodes) for one in (after, before))
    if made != want:
        return f"the agent made {made} of {want} recorded calls"
    return "" if len(before.nodes) == len(after.nodes) else "the conversation has another length"


def _timeless(episode: Episode) -> Episode:
    episode = from_json(Episode, to_json(episode))  # as the log gives it: JSON types only
    return replace(episode, id="", run="", started=0.0, seconds=0.0, score=None)


def _logged(made: Episode, stored: Episode) -> Episode:
    """As the log would have it: what held a secret was stored without the ids that spell it, and
    digests of what held one are not those of what is left."""
    pairs = zip(made.trajectories, stored.trajectories, strict=False)
    trajectories = tuple(_bare(one, old) if old.redacted else one for one, old in pairs)
    setup = made.setup
    if setup is not None and any(one.redacted for one in stored.trajectories):
        setup = replace(
            setup, results=tuple(replace(one, arguments="") for one in setup.results),
            unanswered=tuple(replace(one, call="") for one in setup.unanswered),
        )  # fmt: skip
    return replace(made, trajectories=trajectories, setup=setup)


def _bare(made: Trajectory, stored: Trajectory) -> Trajectory:
    """Without ids, which also say how calls join."""
    nodes = tuple(replace(node, token_ids=(), logprobs=None) for node in made.nodes)
    return replace(
        made, nodes=nodes, redacted=True,
        drift=stored.drift, clean=stored.clean, realigned=stored.realigned,
    )  # fmt: skip


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return f"`{text}`" if len(text) <= 80 else f"`{text[:79]}…`"
