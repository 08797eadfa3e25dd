"""LanceDB as a contender: its indexes built once on disk, and a query at a setting."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

F32 = npt.NDArray[np.float32]

SETTINGS = tuple({"nprobes": n, "refine_factor": r} for n in (8, 16, 32, 64) for r in (3, 8, 20))
"""Swept for every table; the best that reaches the recall is shown."""
DISTANCE = {"ip": "dot", "l2": "l2", "cosine": "cosine"}


def available() -> bool:
    """Whether LanceDB is installed."""
    return importlib.util.find_spec("lancedb") is not None


def built(folder: Path, vectors: F32, metric: str, quick: bool = False) -> dict[str, str]:
    """Tables by name, and what index each has; made when they are not there yet.

    As many partitions as the square root of the rows, and one for 256 rows, more than which LanceDB does not make. A
    product quantizer of a byte for four dimensions: its default of one for sixteen needs so many candidates for the
    recall asked for that it reads more.
    """
    from lancedb.index import IvfPq, IvfRq

    most = max(1, len(vectors) // 256)
    few = min(most, round(len(vectors) ** 0.5))
    kinds: dict[str, tuple[str, Any]] = {}
    for parts in dict.fromkeys((few,) if quick else (few, most)):
        options: dict[str, Any] = {"distance_type": DISTANCE[metric], "num_partitions": parts}
        kinds[f"pq{parts}"] = f"IVF_PQ, {parts} partitions", IvfPq(num_sub_vectors=vectors.shape[1] // 4, **options)
        kinds[f"rq{parts}"] = f"IVF_RQ, {parts} partitions", IvfRq(**options)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    for name, (_, kind) in kinds.items():
        if not (folder / f"{name}.whole").exists():
            shutil.rmtree(folder / f"{name}.lance", ignore_errors=True)
            table = _connect(str(folder)).create_table(
                name, pa.table({"id": np.arange(len(vectors)), "vector": rows}), mode="overwrite"
            )
            table.create_index("vector", config=kind)
            (folder / f"{name}.whole").touch()
    return {name: about for name, (about, _) in kinds.items()}


def ask(folder: str, name: str, metric: str) -> Callable[[F32, dict[str, int]], npt.NDArray[Any]]:
    """A function that finds the ids nearest to one query, over a table on disk or on S3 (its settings in AWS_*)."""
    table = _connect(folder).open_table(name)

    def find(query: F32, setting: dict[str, int]) -> npt.NDArray[Any]:
        found = table.search(query).distance_type(DISTANCE[metric]).limit(10).select(["id", "_distance"])
        for key, value in setting.items():
            found = getattr(found, key)(value)
        ids: npt.NDArray[Any] = found.to_arrow().column("id").to_numpy()
        return ids

    return find


def _connect(folder: str) -> Any:
    os.environ.setdefault("LANCE_LOG", "error")
    import lancedb

    options = None
    if folder.startswith("s3://"):
        options = {
            "aws_endpoint": os.environ["AWS_ENDPOINT_URL"], "allow_http": "true",
            "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_region": os.environ["AWS_DEFAULT_REGION"],
            "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        }  # fmt: skip
    return lancedb.connect(folder, storage_options=options)
