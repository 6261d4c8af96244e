"""What a rollout was given, as a record: enough to make it again, and to say what changed since.

Goes in: a graph, the tools that are lent, an order for a rollout and what came of it. Comes out:
its `Setup`. Graph and tools stand in it as digests: the code of a node is not looked into, what it
does shows in what it asks the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentloop.graphs.lent import LentModel
from agentloop.graphs.lent_tools import ToolBook
from agentloop.graphs.load import Graph, reference_of
from agentloop.ports import Tool
from agentloop.records import Attempt, Setup, ToolSpec, content_id


def shape_of(graph: Graph) -> str:
    """Of a graph's nodes, how they follow each other and what its state holds."""
    nodes = sorted((name, sorted(node.triggers)) for name, node in graph.nodes.items())
    return content_id("shape", nodes, sorted(graph.channels))


def digest_of(spec: ToolSpec) -> str:
    """Of what a model is told about a tool."""
    return content_id("tool", spec)


class Setups:
    """Makes the `Setup` of each rollout of one run."""

    def __init__(self, graph: Graph, tools: Mapping[str, Tool], native: bool) -> None:
        self._reference, self._native = reference_of(graph), native
        self._shape = shape_of(graph)
        self._specs = {name: tool.spec for name, tool in tools.items()}
        self._digests = {name: digest_of(spec) for name, spec in self._specs.items()}

    def of(self, attempt: Attempt, lent: LentModel, book: ToolBook) -> Setup:
        """Of a rollout that ended."""
        offered = {
            name: digest_of(spec)
            for name, spec in lent.offered.items()
            if spec is not self._specs.get(name)
        }
        return Setup(
            graph=self._reference, shape=self._shape, tools=self._digests,
            system=attempt.system, sampling=attempt.sampling, limits=lent.limits,
            policy=attempt.policy, subject=attempt.subject, native_tools=self._native,
            results=book.results(), offered=offered, unanswered=tuple(lent.unanswered),
            parent=attempt.parent, step=attempt.step, history=attempt.history,
        )  # fmt: skip
