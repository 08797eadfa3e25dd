"""The compiled walk of a graph: the same neighbours as FAISS's search of the same file, however it is cut up."""

from __future__ import annotations

from typing import Literal

import faiss
import numpy as np
import pytest

from cluster.exact import pair_scores
from cluster.graph import Graph, eight_bits, steps
from cluster.hnsw import Hnsw, principal
from cluster.index_kind import bitmap
from cluster.results import NO_ROW, recall
from tests.collection_fixtures import clustered

ROWS, DIM, K = 2500, 80, 10
VECTORS, QUERIES = clustered(ROWS, DIM), clustered(40, DIM, seed=8)
Store = Literal["flat", "fp16", "sq8"]


def filled(store: Store, metric: str) -> tuple[faiss.Index, Graph]:
    """FAISS's index of all rows and ours."""
    kind = Hnsw(store=store, ef_construction=60)
    index = kind.trained(VECTORS, DIM, metric)
    index.add(VECTORS)
    return index, kind.opened(index)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("store", ["flat", "fp16", "sq8"])
def test_the_walk_finds_what_faiss_finds(store: Store, metric: str) -> None:
    """Recall, and scores that are those of the stored vectors."""
    index, graph = filled(store, metric)
    order = 1 if metric == "l2" else -1
    scores, rows, compared = graph.search(QUERIES, K, 64, 40, None, 1)
    parameters = faiss.IndexRefineSearchParameters(
        k_factor=4,
        base_index_params=faiss.SearchParametersPreTransform(index_params=faiss.SearchParametersHNSW(efSearch=64)),
    )
    _, theirs = index.search(QUERIES, K, params=parameters)
    metric_type = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    _, truth = faiss.knn(QUERIES, VECTORS, K, metric=metric_type)
    assert recall(rows, truth) >= max(0.95, recall(theirs, truth) - 0.02)
    assert 0 < compared < len(QUERIES) * ROWS
    assert (np.diff(order * scores, axis=1) >= 0).all()
    expected = pair_scores(np.repeat(QUERIES, K, 0), graph.vectors(rows.reshape(-1)), metric).reshape(rows.shape)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    stored = faiss.downcast_index(index.refine_index).reconstruct_n(0, ROWS)
    np.testing.assert_allclose(graph.vectors(np.arange(ROWS)), stored, rtol=1e-6, atol=1e-5)


def test_a_batch_may_be_cut_anywhere() -> None:
    """One by one, by two threads, all at once: the same answers."""
    _, graph = filled("fp16", "l2")
    scores, rows, compared = graph.search(QUERIES, K, 32, 32, None, 1)
    for threads in (2, 3):
        again = graph.search(QUERIES, K, 32, 32, None, threads)
        assert np.array_equal(again[0], scores) and np.array_equal(again[1], rows) and again[2] == compared
    single = [graph.search(query[None], K, 32, 32, None, 1)[1][0] for query in QUERIES]
    assert np.array_equal(np.stack(single), rows)


def test_a_wide_search_compares_every_node() -> None:
    """Where a walk would keep a large share of the nodes, the answer is that of the scan."""
    _, graph = filled("flat", "ip")
    scores, rows, compared = graph.search(QUERIES, 50, ROWS, 200, None, 1)
    best, truth = faiss.knn(QUERIES, VECTORS, 50, metric=faiss.METRIC_INNER_PRODUCT)
    assert compared == len(QUERIES) * ROWS
    assert recall(rows, truth) >= 0.999
    np.testing.assert_allclose(scores, best, rtol=1e-4)


@pytest.mark.parametrize("width", [64, ROWS])
def test_only_allowed_rows_answer(width: int) -> None:
    """Walked or scanned; rows that are not there are marked."""
    _, graph = filled("sq8", "l2")
    allowed = np.arange(1, ROWS, 7)
    _, rows, _ = graph.search(QUERIES, K, width, width, bitmap(allowed, ROWS), 1)
    assert np.isin(rows[rows != NO_ROW], allowed).all()
    assert (rows != NO_ROW).any()
    _, none, _ = graph.search(QUERIES, K, width, width, bitmap(allowed[:3], ROWS), 1)
    assert ((none != NO_ROW).sum(axis=1) <= 3).all()


def test_eight_bits_hold_whole_numbers() -> None:
    """Pixels come back as they were; a dimension that does not vary does not divide by zero."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 12)).astype(np.float32)
    pixels[0], pixels[1], pixels[:, 3] = 0, 255, 7
    quantizer = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2)
    eight_bits(quantizer, pixels)
    quantizer.add(pixels)
    back = quantizer.reconstruct_n(0, 500)
    np.testing.assert_allclose(np.delete(back, 3, 1), np.delete(pixels, 3, 1), atol=1e-3)
    low, step = steps(quantizer)
    np.testing.assert_allclose(low + step * faiss.vector_to_array(quantizer.codes).reshape(500, 12), back, atol=1e-4)


def test_heads_hold_the_variance() -> None:
    """Orthonormal, greatest variance first, 95 % of it in steps of 64 unless told otherwise."""
    random = np.random.default_rng(1)
    sample = (random.normal(size=(3000, 200)) * np.geomspace(1, 0.001, 200)).astype(np.float32)
    rotation = principal(sample, None)
    assert rotation.shape == (64, 200)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(64), atol=1e-5)
    assert (sample @ rotation.T).var() * 64 >= 0.95 * sample.var() * 200
    assert principal(sample, 10).shape == (10, 200)
    assert principal(sample[:1], None).shape[0] == 64
