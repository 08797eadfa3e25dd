"""Scores in the transform's domain are those of the decoded rows."""

from __future__ import annotations

import numpy as np
import pytest

from operators import lists, rowcode, rowtrellis
from operators.rowscan import RowScan
from tests.collection_fixtures import clustered


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("with_lists", [False, True])
def test_scores_are_those_of_the_decoded_rows(metric: str, unit: bool, with_lists: bool) -> None:
    rows = clustered(3000, 24)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if unit else rows + 3
    centroids = lists.train(rows, 12) if with_lists else None
    own = lists.nearest(rows, centroids)[:, 0] if centroids is not None else None
    code = rowcode.fit(rows, (0.7, 2.0, 4.0), centroids, own, block=16)
    scan, queries = RowScan(code, metric), rows[:7] + np.float32(0.1)
    levels, turned = code.encode(rows, own), scan.turn(queries)
    total = scan.centroids[own if own is not None else np.zeros(len(rows), np.int64)]
    for level in range(code.depth):
        scan.add(total, level, rowtrellis.index(levels[f"level{level}"], code.states, np.int16))
        decoded = code.decode({f"level{k}": levels[f"level{k}"] for k in range(level + 1)}, own)
        wanted = decoded @ queries.T if metric == "ip" else -((decoded[:, None] - queries[None]) ** 2).sum(axis=2)
        scale = np.abs(wanted).std()
        np.testing.assert_allclose(scan.scores(total, turned, precise=True), wanted, rtol=1e-4, atol=1e-4 * scale)
        np.testing.assert_allclose(scan.scores(total, turned), wanted, atol=0.1 * scale)
    lists_of = own if own is not None else np.zeros(len(rows), np.int64)
    first = scan.centroids[lists_of]
    index = rowtrellis.index(levels["level0"], code.states)
    np.testing.assert_array_equal(rowtrellis.symbols(index), levels["level0"])
    scan.add(first, 0, index)
    near, squares = np.ascontiguousarray(scan.products(scan.centroids, turned).T), scan.squares(scan.centroids)
    found = scan.first(index, lists_of, near, squares, turned)
    np.testing.assert_allclose(found, scan.scores(first, turned), rtol=1e-4, atol=1e-4 * float(np.abs(found).std()))
    some = scan.scores(total, turned.take([2, 4]))
    np.testing.assert_allclose(some, scan.scores(total, turned)[:, [2, 4]], rtol=1e-5)
