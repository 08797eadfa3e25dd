"""Who descends from whom among related models, told from their signatures alone.

Weights move little from a parent to its child, so the tree is a minimum spanning tree of distances (Horwitz et al.,
"Unsupervised Model Tree Heritage Recovery", 2025, who direct it by kurtosis). Here

- its root is the model from which the fewest edges run against what cannot be undone: zeros and ties come, layers go;
- models with zeros or ties that the root has not were compressed, and are ends of the tree;
- a model that lies between others, on the straight line or the plane through them, was merged of them;
- where several parents are as near as can be told, the one nearest to the root is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from operators.relation import Relation, relate
from operators.signature import Signature

F64 = npt.NDArray[np.float64]
Tree = dict[int, list[int]]
RELATED = 0.45
"""Least score of relatives; unrelated models of one small architecture come up to 0.4."""
AS_NEAR = 1.05
"""Distances within this factor are told apart by chance."""
STRAIGHT = 0.1
"""A merged model lies this close to the plane of its parts, of its distance to the nearest."""


@dataclass(frozen=True)
class Edge:
    """From a parent to its child.

    Parameters
    ----------
    distance: as :func:`separation` measures it.
    why: what the child has that does not go away again: zeros, ties, fewer layers; ``merged``; empty without.
    others: of a merged child, its other parents.
    """

    parent: str
    child: str
    distance: float
    why: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """Of a model: shares of zeros and ties, layers, its linear sketch end to end and what tensors that is of."""

    zeros: float
    ties: float
    layers: int
    linear: F64
    shapes: tuple[tuple[str, int, int], ...]

    def compressed(self, root: _Facts) -> bool:
        """Whether it has zeros or ties that the root has not."""
        return self.zeros > root.zeros + 0.01 or self.ties > 2 * root.ties + 0.002

    def after(self, other: _Facts) -> tuple[str, ...]:
        """What it has that does not go away again, seen from another model."""
        told = ("zeros", self.zeros > other.zeros + 0.01), ("ties", self.ties > 2 * other.ties + 0.002)
        return tuple(name for name, holds in (*told, ("layers", self.layers < other.layers)) if holds)


def separation(first: Signature, second: Signature, relation: Relation) -> float:
    """Distance of two relatives, over the length of their weights.

    The lesser of what the linear sketches tell, which know each value's place, and of what the products tell, which do
    not mind the order of neurons; tensors that have no counterpart count as lost.
    """
    lost = 1 - len(relation.pairs) / max(1, len(first.tensors), len(second.tensors))
    turned = float(np.sqrt(max(0.0, 1 - relation.score))) + 0.01
    return float(np.hypot(min(relation.distance, turned), np.sqrt(max(0.0, lost))))


def descent(models: Mapping[str, Signature]) -> list[Edge]:
    """Edges of the forest, children in the order of ``models``; models without relatives are in none."""
    names = list(models)
    distances = np.full((len(names), len(names)), np.inf)
    for i, j in combinations(range(len(names)), 2):
        one, other = models[names[i]], models[names[j]]
        relation = relate(one, other)
        if relation.score >= RELATED:
            distances[i, j] = distances[j, i] = separation(one, other, relation)
    facts = [_facts(models[name]) for name in names]
    edges: dict[int, Edge] = {}
    for family in _families(distances):
        for child, parents in _parents(family, distances, facts).items():
            first, *others = parents
            why = ("merged",) if others else facts[child].after(facts[first])
            edges[child] = Edge(
                names[first], names[child], float(distances[first, child]), why, tuple(names[i] for i in others)
            )
    return [edges[i] for i in range(len(names)) if i in edges]


def _parents(family: Sequence[int], distances: F64, facts: Sequence[_Facts]) -> dict[int, list[int]]:
    """By child, its parents, the nearest first."""
    root = _root(family, _spanning(family, distances), facts)
    ends = {node for node in family if node != root and facts[node].compressed(facts[root])}
    merged = _merged([node for node in family if node not in ends], distances, facts, root)
    core = [node for node in family if node not in ends and node not in merged]
    root = _root(core, _spanning(core, distances), facts) if root not in core else root
    for node in _bridges(root, core, family, distances):
        core.append(node)
        ends.discard(node)
        merged.pop(node, None)
    core.sort()
    above = {child: parent for parent, child in _rooted(root, _spanning(core, distances))}
    for child in core:
        if child != root:  # one after another, so that nobody comes to be above itself
            above[child] = _nearest(child, (n for n in core if child not in _line(n, above)), distances, root)
    found = {child: [parent] for child, parent in above.items()}
    up = {child: parent for parent, child in _rooted(root, _spanning(family, distances))}
    for child in ends:  # one that is related to other ends alone hangs where the spanning tree has it
        near = [n for n in (*core, *merged) if np.isfinite(distances[child, n])]
        found[child] = [_nearest(child, near or [up[child]], distances, root)]
    return found | {child: sorted(parts, key=lambda n: distances[child, n]) for child, parts in merged.items()}


def _bridges(root: int, core: Sequence[int], family: Sequence[int], distances: F64) -> set[int]:
    """Nodes without which part of the core would hang together with the root no longer."""
    reached = {root, *(child for _, child in _rooted(root, _spanning(core, distances)))}
    above = {child: parent for parent, child in _rooted(root, _spanning(family, distances))}
    return {n for lost in core if lost not in reached for n in _line(lost, above)} - set(core)


def _nearest(child: int, candidates: Iterable[int], distances: F64, root: int) -> int:
    """Of the candidates that are as near as can be told, the one nearest to the root."""
    listed = [n for n in candidates if n != child]
    least = min(distances[child, n] for n in listed)
    close = [n for n in listed if distances[child, n] <= AS_NEAR * least]
    return min(close, key=lambda n: (0.0 if n == root else distances[root, n], n))


def _merged(family: Sequence[int], distances: F64, facts: Sequence[_Facts], root: int) -> dict[int, list[int]]:
    """Models that are a mean of two others, or the root and parts of what others added to it."""
    found: dict[int, list[int]] = {}
    for node in family:
        if node == root:
            continue
        near = [n for n in family if n != node and np.isfinite(distances[node, n])]
        alike = [n for n in near if n not in found and facts[n].shapes == facts[node].shapes]
        best = STRAIGHT
        for parts in combinations(alike, 2):
            for base in {parts[0], root if root in alike else parts[0]}:
                axes = [n for n in parts if n != base]
                if root in parts and base != root:
                    continue
                off, shares = _off_plane(facts[node].linear, facts[base].linear, [facts[n].linear for n in axes])
                least = min(distances[node, n] for n in (base, *axes)) * float(np.linalg.norm(facts[base].linear))
                inside = all(0.1 < share < 0.95 for share in shares) and (len(axes) > 1 or root not in (base, *axes))
                if inside and off < best * least:
                    best = off / least
                    found[node] = [base, *axes]
    return found


def _off_plane(point: F64, base: F64, ends: Sequence[F64]) -> tuple[float, list[float]]:
    """Distance of a point from the plane through ``base`` and ``ends``, and its shares of the ends."""
    axes = np.stack([end - base for end in ends], axis=1)
    shares, *_ = np.linalg.lstsq(axes, point - base, rcond=None)
    return float(np.linalg.norm(point - base - axes @ shares)), [float(share) for share in shares]


def _families(distances: F64) -> list[list[int]]:
    """Groups of two or more that hang together."""
    left, groups = set(range(len(distances))), []
    while left:
        group, front = set[int](), [left.pop()]
        while front:
            node = front.pop()
            group.add(node)
            reached = {int(n) for n in np.flatnonzero(np.isfinite(distances[node]))} & left
            left -= reached
            front += reached
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def _spanning(nodes: Sequence[int], distances: F64) -> Tree:
    """Kruskal's minimum spanning forest: neighbours of each node."""
    owner, links = {node: node for node in nodes}, defaultdict[int, list[int]](list)

    def top(node: int) -> int:
        while owner[node] != node:
            node = owner[node]
        return node

    near = [(distances[i, j], i, j) for i, j in combinations(nodes, 2) if np.isfinite(distances[i, j])]
    for _, i, j in sorted(near):
        if top(i) != top(j):
            owner[top(i)] = top(j)
            links[i].append(j)
            links[j].append(i)
    return links


def _root(nodes: Sequence[int], links: Tree, facts: Sequence[_Facts]) -> int:
    """The node whose tree has the fewest edges against the evidence; four neighbours weigh as much as one of those."""
    against = {
        root: sum(len(facts[parent].after(facts[child])) for parent, child in _rooted(root, links)) for root in nodes
    }
    return min(nodes, key=lambda node: (against[node] - len(links[node]) / 4, facts[node].zeros, node))


def _rooted(root: int, links: Tree) -> list[tuple[int, int]]:
    """Edges away from the root, parents before children."""
    edges, seen, front = [], {root}, [root]
    while front:
        parent = front.pop()
        for child in links[parent]:
            if child not in seen:
                seen.add(child)
                front.append(child)
                edges.append((parent, child))
    return edges


def _line(node: int, above: Mapping[int, int]) -> list[int]:
    """A node and all above it."""
    line = [node]
    while line[-1] in above:
        line.append(above[line[-1]])
    return line


def _facts(signature: Signature) -> _Facts:
    sizes = np.array([tensor.size for tensor in signature.tensors], np.float64)
    moments = np.array([tensor.moments for tensor in signature.tensors], np.float64).reshape(len(sizes), -1)
    shares = sizes / max(1.0, sizes.sum())
    zeros, ties = (float(moments[:, at] @ shares) if len(sizes) else 0.0 for at in (4, 5))
    linear = [tensor.linear.astype(np.float64) / np.sqrt(max(1, tensor.linear.size)) for tensor in signature.tensors]
    shapes = tuple((tensor.name, tensor.rows, tensor.columns) for tensor in signature.tensors)
    return _Facts(zeros, ties, len(signature.layers), np.concatenate(linear) if linear else np.zeros(0), shapes)
