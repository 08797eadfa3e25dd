"""Who descends from whom among related models, told from their signatures alone.

Weights move little from a parent to its child, so the tree is a minimum spanning tree of the distances (Horwitz et al.,
"Unsupervised Model Tree Heritage Recovery", 2025, who direct it by kurtosis). It is directed here from its root, the
model from which the fewest edges run against what cannot be undone: zeros, ties and dropped layers come, and do not go.
A model that lies between two others, on the straight line, was merged of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from operators.relation import Relation, relate
from operators.signature import Signature

F64 = npt.NDArray[np.float64]
RELATED = 0.45
"""Least score of relatives; unrelated models of one small architecture come up to 0.4."""
_EVIDENCE = (("zeros", 4, 0.01), ("ties", 5, 0.01))


@dataclass(frozen=True)
class Edge:
    """From a parent to its child.

    Parameters
    ----------
    distance: as :func:`separation` measures it.
    why: what speaks for the direction: zeros, ties, layers; empty where only the root does.
    """

    parent: str
    child: str
    distance: float
    why: tuple[str, ...] = ()


def separation(first: Signature, second: Signature, relation: Relation) -> float:
    """Distance of two relatives, over the length of their weights.

    The lesser of what the linear sketches tell, which know each value's place, and of what the products tell, which do
    not mind the order of neurons; tensors that have no counterpart count as lost.
    """
    lost = 1 - len(relation.pairs) / max(1, len(first.tensors), len(second.tensors))
    placed = relation.distance
    turned = float(np.sqrt(max(0.0, 1 - relation.score))) + 0.01
    return float(np.hypot(min(placed, turned), np.sqrt(max(0.0, lost))))


def descent(models: Mapping[str, Signature]) -> list[Edge]:
    """Edges of the forest, children in the order of ``models``; strangers are its roots."""
    names = list(models)
    near: list[tuple[float, int, int]] = []
    for i, j in combinations(range(len(names)), 2):
        first, second = models[names[i]], models[names[j]]
        relation = relate(first, second)
        if relation.score >= RELATED:
            near.append((separation(first, second, relation), i, j))
    links, family = _spanning(near, len(names))
    facts = [_facts(models[name]) for name in names]
    edges: dict[int, Edge] = {}
    for group in family:
        root = _root(group, links, facts)
        for parent, child, distance in _rooted(root, links):
            why = tuple(what for what in _reasons(facts[parent], facts[child]))
            edges[child] = Edge(names[parent], names[child], distance, why)
    return [edges[i] for i in range(len(names)) if i in edges]


def _spanning(
    near: Sequence[tuple[float, int, int]], count: int
) -> tuple[dict[int, list[tuple[int, float]]], list[list[int]]]:
    """Kruskal's minimum spanning forest: neighbours of each node, and the nodes of each tree."""
    owner = list(range(count))

    def top(node: int) -> int:
        while owner[node] != node:
            owner[node] = owner[owner[node]]
            node = owner[node]
        return node

    links: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for distance, i, j in sorted(near):
        if top(i) != top(j):
            owner[top(i)] = top(j)
            links[i].append((j, distance))
            links[j].append((i, distance))
    groups: dict[int, list[int]] = defaultdict(list)
    for node in range(count):
        groups[top(node)].append(node)
    return links, list(groups.values())


def _facts(signature: Signature) -> dict[str, float]:
    weights = np.array([tensor.size for tensor in signature.tensors], np.float64)
    moments = np.array([tensor.moments for tensor in signature.tensors], np.float64)
    told = {name: float(moments[:, at] @ weights / weights.sum()) for name, at, _ in _EVIDENCE} if len(weights) else {}
    return told | {"layers": float(len(signature.layers))}


def _reasons(parent: dict[str, float], child: dict[str, float]) -> list[str]:
    """What the child has that does not go away again."""
    found = [name for name, _, least in _EVIDENCE if child.get(name, 0) > parent.get(name, 0) + least]
    return found + (["layers"] if child["layers"] < parent["layers"] else [])


def _root(group: Sequence[int], links: dict[int, list[tuple[int, float]]], facts: list[dict[str, float]]) -> int:
    """The node whose tree has the fewest edges against the evidence; among equals the one with most neighbours."""
    against: Counter[int] = Counter()
    for root in group:
        for parent, child, _ in _rooted(root, links):
            against[root] += len(_reasons(facts[child], facts[parent]))
    spread = {node: sum(distance for _, distance in links[node]) / max(1, len(links[node])) for node in group}
    return min(group, key=lambda node: (against[node], -len(links[node]), spread[node], node))


def _rooted(root: int, links: dict[int, list[tuple[int, float]]]) -> list[tuple[int, int, float]]:
    """Edges away from the root: parent, child, distance."""
    edges, seen, front = [], {root}, [root]
    while front:
        parent = front.pop()
        for child, distance in links[parent]:
            if child not in seen:
                seen.add(child)
                front.append(child)
                edges.append((parent, child, distance))
    return edges
