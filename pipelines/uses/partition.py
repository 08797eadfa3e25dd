"""Rows of a collection beside their likes: lists of near rows, compared list by list, never all with all.

The archive is read once: centroids come from a sample, each row is written to a scratch file on the way, and what stays
in memory is, for each row, the few lists that it must be compared with.
With 2·√n lists of √n/2 rows each, a collection of n rows costs about probes·n·√n/2 comparisons.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.vectors import F32, I64, prepared
from operators.errors import HilbertflowError
from operators.lists import train
from pipelines.uses.live_rows import LiveRows

READ_ROWS, BLOCK, ROWS_A_LIST, PAIRS = 8192, 1024, 32, 1 << 22


@dataclass(frozen=True)
class Block:
    """Rows that probe a list, and rows of that list: numbers (q,) and (b,), vectors (q, d) and (b, d)."""

    queries: I64
    base: I64
    query_vectors: F32
    base_vectors: F32

    def squared_distances(self) -> F32:
        """(q, b) float32, rounding included: about 1e-6 of the squared lengths."""
        left = np.einsum("ij,ij->i", self.query_vectors, self.query_vectors)
        right = np.einsum("ij,ij->i", self.base_vectors, self.base_vectors)
        out: F32 = self.query_vectors @ self.base_vectors.T
        out *= -2
        out += left[:, None]
        out += right
        return np.maximum(out, 0, out=out)


@dataclass(frozen=True)
class Partition:
    """A collection cut into lists.

    Parameters
    ----------
    vectors: float32 (n, d) on scratch disk, of unit length where the collection is compared by similarity.
    home: int32 (n,), the list of each row.
    probe_rows, probe_lists: which row must be compared with which list, one pair an entry.
    cut: rows whose probes were fewer than their radius asks for.
    """

    vectors: F32
    home: npt.NDArray[np.int32]
    probe_rows: I64
    probe_lists: npt.NDArray[np.int32]
    cut: int

    def blocks(self, leave_out: npt.NDArray[np.bool_] | None = None) -> Iterator[Block]:
        """Every row beside the rows of the lists that it probes; pairs of a row with itself are among them.

        leave_out: bool (n,), rows that take no part.
        """
        rows, lists = self.probe_rows, self.probe_lists
        members = np.arange(len(self.home))
        if leave_out is not None:
            kept = ~leave_out[rows]
            rows, lists, members = rows[kept], lists[kept], members[~leave_out]
        members = members[np.argsort(self.home[members], kind="stable")]
        order = np.argsort(lists, kind="stable")
        rows, lists, homes = rows[order], lists[order], self.home[members]
        for number in np.unique(homes):
            base = members[np.searchsorted(homes, number) : np.searchsorted(homes, number, "right")]
            guests = rows[np.searchsorted(lists, number) : np.searchsorted(lists, number, "right")]
            for low in range(0, len(base), READ_ROWS):
                part = base[low : low + READ_ROWS]
                step, fetched = max(64, PAIRS // len(part)), np.asarray(self.vectors[part])
                for at in range(0, len(guests), step):
                    some = guests[at : at + step]
                    yield Block(some, part, np.asarray(self.vectors[some]), fetched)


def partition(live: LiveRows, probes: int, radius: float | None = None) -> Partition:
    """Read a collection once and cut it into lists.

    probes: nearest lists that a row is compared with; 0 for as many as ``radius`` asks for. radius: a distance; lists
    that cannot hold a row so near are not probed. What is nearer to another centroid lies beyond the plane half way
    between the two, so a row farther from that plane than the radius has nothing to find behind it: with ``cut`` 0 no
    pair within the radius is missed.

    Raises when the scratch disk is too small for the vectors.
    """
    count, metric = live.count, live.compared
    if count == 0:
        raise HilbertflowError("the collection is empty", where=live.url, remedy="add rows first")
    lists = max(1, min(round(2 * math.sqrt(count)), count // 8))
    sample = prepared(live.sample(min(count, ROWS_A_LIST * lists)), metric)
    centroids = train(sample, lists, rounds=6)
    vectors = _scratch(count, live.dim)
    home = np.empty(count, np.int32)
    rows: list[I64] = []
    chosen: list[npt.NDArray[np.int32]] = []
    cut = 0
    for start in range(0, count, READ_ROWS):
        part = prepared(live.read(start, min(count, start + READ_ROWS)), metric)
        vectors[start : start + len(part)] = part
        for low in range(0, len(part), BLOCK):
            near, reach, missed = _near(part[low : low + BLOCK], centroids, probes or lists, radius)
            begin = start + low
            home[begin : begin + len(near)] = near[:, 0]
            at, column = np.nonzero(reach)
            rows.append(at + begin)
            chosen.append(near[at, column])
            cut += missed
    return Partition(vectors, home, np.concatenate(rows), np.concatenate(chosen), cut)


def _near(
    rows: F32, centroids: F32, probes: int, radius: float | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], int]:
    """Nearest lists (n, p) nearest first, which of them are within reach (n, p), and how many rows lose some."""
    squares = np.einsum("ij,ij->i", centroids, centroids)
    distance = squares - 2 * (rows @ centroids.T)  # less the row's own square
    width = min(probes, len(centroids))
    near = np.argpartition(distance, width - 1, axis=1)[:, :width]
    near = np.take_along_axis(near, np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable"), 1)
    if radius is None:
        return near.astype(np.int32), np.ones(near.shape, np.bool_), 0
    home = near[:, 0]
    apart = np.sqrt(np.maximum(squares[home][:, None] + squares - 2 * (centroids[home] @ centroids.T), 0))
    margin = distance - np.take_along_axis(distance, home[:, None], 1)  # twice the way to the plane, times `apart`
    slack = 1e-5 * (squares.max() + np.einsum("ij,ij->i", rows, rows).max())
    within = margin <= 2 * radius * apart + slack
    reach = np.take_along_axis(within, near, 1)
    return near.astype(np.int32), reach, int((within.sum(axis=1) > reach.sum(axis=1)).sum())


def _scratch(count: int, dim: int) -> F32:
    """Zeros (count, dim) float32 in a nameless file that goes with the array."""
    size = count * dim * 4
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise HilbertflowError(
                f"no room for {size / 1e9:.1f} GB of vectors ({error.strerror})", where=tempfile.gettempdir(),
                remedy="name a larger directory in TMPDIR",
            ) from error  # fmt: skip
        mapped: Any = np.memmap(file, np.float32, "r+", shape=(count, dim))
        return np.asarray(mapped)
