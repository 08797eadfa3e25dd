"""Trees of the test bed's models: how good one is, and the peers that read all weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt

from pipelines.bench.zoo import Member

F64 = npt.NDArray[np.float64]
PENALTY = 0.3
"""Of the mean distance, for an edge against the kurtosis."""
RELATED = 1.0
"""Distances of this and more, over the length of the weights, are those of strangers."""


@dataclass(frozen=True)
class TreeScore:
    """F1 of directed edges; share of the undirected ones found that point the right way; edges found."""

    f1: float
    direction: float
    edges: int


def judged(edges: Iterable[tuple[str, str]], members: Sequence[Member]) -> TreeScore:
    """Compare edges (parent, child) with the truth: of a merged child, any of its parents is right."""
    listed = list(edges)
    truth = {(parent, member.name) for member in members for parent in member.parents}
    children = sum(bool(member.parents) for member in members)
    right = sum(edge in truth for edge in listed)
    known = sum(edge in truth or edge[::-1] in truth for edge in listed)
    return TreeScore(2 * right / max(1, len(listed) + children), right / max(1, known), len(listed))


def spanning_tree(members: Sequence[Member], distance: F64) -> list[tuple[str, str]]:
    """Minimum spanning forest, each tree rooted at the node with most neighbours."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(members)))
    for i, j in zip(*np.nonzero(distance < RELATED), strict=True):
        if i < j:
            graph.add_edge(int(i), int(j), weight=float(distance[i, j]))
    forest, edges = nx.minimum_spanning_tree(graph), []
    for nodes in nx.connected_components(forest):
        root = max(nodes, key=lambda node: (forest.degree(node), -node))
        edges += [(members[a].name, members[b].name) for a, b in nx.bfs_edges(forest, root)]
    return edges


def kurtosis_tree(members: Sequence[Member], distance: F64, rising: F64) -> list[tuple[str, str]]:
    """MoTHer (Horwitz et al., 2025): minimum directed spanning tree of the distance plus a penalty for every edge along
    which ``rising`` falls, in each group of relatives.
    """
    near = distance < RELATED
    groups = nx.connected_components(nx.from_numpy_array(near & ~np.eye(len(near), dtype=bool)))
    edges: list[tuple[str, str]] = []
    for nodes in groups:
        inside = sorted(nodes)
        pairs = [(i, j) for i in inside for j in inside if i != j and near[i, j]]
        if not pairs:
            continue
        penalty = PENALTY * float(np.mean([distance[i, j] for i, j in pairs]))
        graph = nx.DiGraph()
        for i, j in pairs:
            graph.add_edge(i, j, weight=float(distance[i, j]) + penalty * float(rising[j] < rising[i]))
        tree = nx.minimum_spanning_arborescence(graph)
        edges += [(members[a].name, members[b].name) for a, b in tree.edges]
    return edges
