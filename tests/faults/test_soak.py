"""The endpoint while rows change, indexes are swapped and shard actors die; `bench soak` is the long form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.bench.soak import Schedule, soak
from tests.collection_fixtures import archive_vectors, clustered

ROWS, DIM = 2000, 16


def test_no_answer_is_wrong(tmp_path: Path, ray_session: None) -> None:
    """A quarter of a minute: every answer checked against the rows of its version."""
    vectors = clustered(ROWS, DIM)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    url = archive_vectors(tmp_path, vectors, "ip")
    ids = [f"row-{i}" for i in range(ROWS)]
    tally = soak(url, vectors, vectors[::7], Schedule(15, 4, 6), ids)
    assert not tally.wrong, tally.wrong
    assert tally.answers > 20
    assert tally.changes > 5
    assert tally.swaps >= 3
    assert tally.kills >= 2
    assert np.mean(tally.recalls) > 0.9
