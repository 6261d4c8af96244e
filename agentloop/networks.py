"""Networks of things: the lineage of artifacts. The only module that imports networkx.

Goes in: a mapping of id to the ids of its parents. Comes out: ancestors in order, and a text tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from agentloop.errors import UnknownName, UsageError

if TYPE_CHECKING:
    import networkx as nx

Parents = Mapping[str, Iterable[str]]
"""Artifact id -> ids of its parents; parents that are not keys are roots."""


def ancestors(parents: Parents, artifact: str) -> list[str]:
    """All that `artifact` descends from, every parent before its children. Raises `UnknownName`
    when it is not in `parents`, `UsageError` when the lineage has a circle."""
    import networkx as nx

    graph = _graph(parents, artifact)
    above = graph.subgraph(nx.ancestors(graph, artifact))
    return list(nx.lexicographical_topological_sort(above))


def descendants(parents: Parents, roots: Iterable[str]) -> list[str]:
    """`roots` and all that descends from any of them, sorted; a circle does no harm."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(parents)
    graph.add_edges_from((one, child) for child, above in parents.items() for one in above)
    found = set(roots)
    for root in list(found):
        found |= nx.descendants(graph, root)
    return sorted(found)


def components(nodes: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """What hangs together, each part sorted, the largest first."""
    import networkx as nx

    graph = nx.Graph(list(pairs))
    graph.add_nodes_from(nodes)
    parts = [sorted(part) for part in nx.connected_components(graph)]
    return sorted(parts, key=lambda part: (-len(part), part))


def edges(parents: Parents, artifact: str) -> list[tuple[str, str]]:
    """(parent, child) pairs of the lineage of `artifact`, sorted."""
    import networkx as nx

    graph = _graph(parents, artifact)
    above = nx.ancestors(graph, artifact) | {artifact}
    return sorted(graph.subgraph(above).edges)


def tree(parents: Parents, artifact: str, label: Callable[[str], str] = str) -> str:
    """The lineage as text, `artifact` first and its parents below it; what was shown before is
    cut short. `label` gives the words for an id."""
    import networkx as nx

    graph = _graph(parents, artifact)
    above = nx.ancestors(graph, artifact) | {artifact}
    below = nx.DiGraph()
    below.add_nodes_from((node, {"label": label(node)}) for node in sorted(above))
    below.add_edges_from(sorted((child, parent) for parent, child in graph.subgraph(above).edges))
    return "\n".join(nx.generate_network_text(below, with_labels=True, sources=[artifact]))


def _graph(parents: Parents, artifact: str) -> nx.DiGraph:
    import networkx as nx

    if artifact not in parents:
        raise UnknownName("artifact", artifact, parents)
    graph = nx.DiGraph()
    graph.add_nodes_from(parents)
    graph.add_edges_from((one, child) for child, above in parents.items() for one in above)
    if not nx.is_directed_acyclic_graph(graph):
        raise UsageError(
            f"the lineage of `{artifact}` runs in a circle; run: agentloop store verify"
        )
    return graph
