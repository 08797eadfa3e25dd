"""A flat codebook as nested ones: merges are the cheapest, every prefix decodes, the last layer is the flat code."""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import codetree
from operators.errors import HilbertflowError


def gaussian(size: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, dim)).astype(np.float32)


def groups(labels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_merges_are_those_of_trying_all_pairs() -> None:
    """The definition, step by step, on 24 weighted cells."""
    points, weight = gaussian(24, 3).astype(np.float64), np.random.default_rng(1).integers(1, 9, 24).astype(np.float64)
    left, right = codetree.merges(points.astype(np.float32), weight)
    clusters = [(points[i], weight[i], (i,)) for i in range(24)]
    for cells in range(23, 0, -1):
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i)]
        costs = [
            clusters[i][1] * clusters[j][1] / (clusters[i][1] + clusters[j][1])
            * ((clusters[i][0] - clusters[j][0]) ** 2).sum() for i, j in pairs
        ]  # fmt: skip
        a, b = (clusters[k] for k in pairs[int(np.argmin(costs))])
        total = a[1] + b[1]
        clusters = [c for c in clusters if c is not a and c is not b]
        clusters.append(((a[0] * a[1] + b[0] * b[1]) / total, total, (*a[2], *b[2])))
        assert groups(codetree._labels(left, right, 24, cells)) == {tuple(sorted(c[2])) for c in clusters}


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 90), dim=st.integers(1, 5), seed=st.integers(0, 99),
    widths=st.one_of(
        st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.sampled_from(["clusters", "values"])
    ),
    repeats=st.integers(0, 3),
)  # fmt: skip
def test_any_codebook(size: int, dim: int, seed: int, widths: object, repeats: int) -> None:
    """Codes come back, the last layer is the flat codebook bit for bit, equal entries and empty cells included."""
    rng = np.random.default_rng(seed)
    book = gaussian(size, dim, seed)
    book[rng.integers(0, size, repeats)] = book[0]
    counts = rng.integers(0, 50, size)
    tree = codetree.build(book, widths, counts)  # type: ignore[arg-type]
    again = type(tree).from_arrays(tree.to_arrays())
    codes = rng.integers(0, size, (7, 11))
    symbols = again.encode(codes)
    assert (again.codes(symbols) == codes).all()
    assert again.decode(symbols).tobytes() == book[codes].tobytes()
    for layer in range(tree.depth):
        assert (symbols[layer] < tree.children(layer)).all()
        assert np.isfinite(again.decode(symbols[: layer + 1])).all()
    assert again.points[-1][np.argsort(again.leaf)].tobytes() == book.tobytes()


def test_widths_cut_and_the_error_falls() -> None:
    book, rng = gaussian(256, 4), np.random.default_rng(2)
    codes = rng.integers(0, 256, 4000)
    tree = codetree.build(book, [4, 2, 2], np.bincount(codes, minlength=256))
    assert [len(points) for points in tree.points] == [16, 64, 256]
    symbols = tree.encode(codes)
    errors = [float(((tree.decode(symbols[: k + 1]) - book[codes]) ** 2).mean()) for k in range(3)]
    assert errors[0] > errors[1] > errors[2] == 0
    # Each cell's point is the mean of what it holds, so no other point would do better.
    first = symbols[0]
    assert np.allclose(tree.points[0][3], book[codes][first == 3].mean(axis=0), atol=1e-5)
    assert codetree.build(book, 3).depth == 3
    assert [len(p) for p in codetree.build(book, "clusters", layers=4).points] == [4, 16, 64, 256]


def test_values_come_to_rest_in_equal_shares() -> None:
    rng = np.random.default_rng(3)
    book, counts = gaussian(512, 2), rng.integers(0, 400, 512)
    tree = codetree.build(book, "values", counts, layers=4)
    codes = np.repeat(np.arange(512), counts)
    symbols, share = tree.encode(codes), []
    for layer in range(3):
        cells = tree.cells(symbols[: layer + 1])
        alone = np.bincount(tree.cells(tree.encode(np.arange(512))[: layer + 1]), minlength=len(tree.points[layer]))
        share.append(float((alone[cells] == 1).mean()))
    assert np.allclose(share, [0.25, 0.5, 0.75], atol=0.03)


def test_a_large_codebook_takes_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tree = codetree.build(gaussian(16_384, 8), [8, 3, 3])
    assert [len(points) for points in tree.points] == [256, 2048, 16_384]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes; all pairs would be 1 GB


LARGE = """
import re, time
from pathlib import Path
import numpy as np
from operators import codetree

rng = np.random.default_rng(5)
book = rng.normal(size=(65_536, 8)).astype(np.float32)
book[rng.integers(0, 65_536, 2000)] = book[:2000]
counts = rng.integers(0, 40, 65_536) * (rng.random(65_536) < 0.8)
begin = time.perf_counter()
tree = codetree.build(book, [8, 4, 4], counts)
took = time.perf_counter() - begin
codes = rng.integers(0, 65_536, 100_000)
symbols = tree.encode(codes)
assert [len(points) for points in tree.points] == [256, 4096, 65_536]
assert (tree.codes(symbols) == codes).all() and tree.decode(symbols).tobytes() == book[codes].tobytes()
# not getrusage: on Linux its peak begins at that of the process which started this one
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(f"{took:.1f} s, {peak:,} bytes")
"""


def test_65536_points_take_less_than_2_gb() -> None:
    """With points twice over and cells that nothing falls into; in a process of its own, whose peak is the claim's."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout.split(", ", 1)[1].split()[0].replace(",", "")) < 2_000_000_000


@pytest.mark.parametrize(
    ("book", "widths"),
    [
        (np.zeros((0, 2), np.float32), [2]), (np.zeros(4, np.float32), [2]), (np.full((4, 2), np.nan, np.float32), [2]),
        (gaussian(4, 2), []), (gaussian(4, 2), [0, 2]), (gaussian(4, 2), "leaves"), (gaussian(4, 2), [99]),
    ],
)  # fmt: skip
def test_what_is_no_codebook_or_no_width(book: np.ndarray, widths: object) -> None:
    with pytest.raises(HilbertflowError, match=r"codebook|widths"):
        codetree.build(book, widths)  # type: ignore[arg-type]


def test_damage_is_told() -> None:
    tree = codetree.build(gaussian(64, 3), [3, 3])
    symbols = tree.encode(np.arange(64))
    with pytest.raises(HilbertflowError, match="names no cell"):
        tree.decode([symbols[0], symbols[1] + 60])
    with pytest.raises(HilbertflowError, match="outside"):
        tree.encode(np.array([64]))
    arrays = tree.to_arrays()
    for name in ("tree_first1", "tree_leaf", "tree_points0"):
        with pytest.raises(HilbertflowError, match="malformed"):
            type(tree).from_arrays(arrays | {name: arrays[name][:-1]})
