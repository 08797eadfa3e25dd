"""Collections for the tests, archived by the real operators and writer in this process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.recipe import Recipe
from pipelines.run import run_here

F32 = npt.NDArray[np.float32]


def clustered(rows: int, dim: int, seed: int = 0, centres: int = 40, spread: float = 0.35) -> F32:
    """Vectors around random centres, (rows, dim) float32: data that has neighbourhoods, as embeddings do."""
    random = np.random.default_rng(seed)
    middle = np.random.default_rng(1234 + dim).normal(size=(centres, dim))
    return (middle[random.integers(0, centres, rows)] + spread * random.normal(size=(rows, dim))).astype(np.float32)


def archive_vectors(
    root: Path, vectors: F32, metric: str = "l2", columns: dict[str, Any] | None = None, ids: list[str] | None = None,
    name: str = "rows", rows_per_unit: int = 1024,
) -> str:  # fmt: skip
    """Archive vectors (with ids `row-N` unless given, and metadata columns) as a collection; returns its URL."""
    dim = vectors.shape[1]
    table = {
        "id": pa.array(ids or [f"row-{i}" for i in range(len(vectors))]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
    }
    source = root / f"{name}.parquet"
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | (columns or {})), source)
    body = {
            "name": name,
            "source": {"kind": "vectors", "path": str(source), "id_column": "id", "metric": metric},
            "operators": [{"kind": "row_blocks"}, {"kind": "row_code"}, {"kind": "frame_encode", "coder": "rans"}],
            "sink": {"path": str(root / "archives"), "name": name},
            "compute": {"rows_per_unit": rows_per_unit},
    }  # fmt: skip
    return run_here(Recipe.model_validate_json(json.dumps(body))).url
