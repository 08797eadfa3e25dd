"""What one builder does: stream a shard's rows from the collection into a copy of the artefact, write the file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import faiss

from cluster.artefact import Artefact
from cluster.index_store import ShardFile, indexes_of, remember, remembered, save_index
from cluster.vectors import prepared
from operators.errors import HilbertflowError
from storage.collection import CollectionArchive

BATCH_ROWS = 4096  # fixed: FAISS links a graph batch by batch, so another size would give another (equally good) graph


@dataclass(frozen=True)
class ShardTask:
    """Rows start … stop - 1 to be indexed as shard `number` of `build`."""

    build: str
    number: int
    start: int
    stop: int


def shard_tasks(build: str, count: int, shards: int) -> list[ShardTask]:
    """Contiguous ranges of nearly equal length; never more shards than rows."""
    shards = min(shards, count)
    borders = [count * i // shards for i in range(shards + 1)]
    return [ShardTask(build, i, borders[i], borders[i + 1]) for i in range(shards)]


def build_shard(collection: CollectionArchive, artefact: Artefact, task: ShardTask) -> ShardFile:
    """Index one shard and write it; the same task gives the same bytes, on any machine that builds it.

    One thread: FAISS links graphs in the order in which threads get there, and shards are what runs side by side.
    Memory is the shard's index and one batch. A shard that an interrupted build has already written is kept.
    """
    place = indexes_of(collection)
    done = remembered(place, task.build, f"shard-{task.number}")
    if done is not None and done[0] == artefact.hash:
        return ShardFile(**done[1])
    faiss.omp_set_num_threads(1)
    index = artefact.empty()
    for start in range(task.start, task.stop, BATCH_ROWS):
        rows = collection.read(start, min(task.stop, start + BATCH_ROWS))
        index.add(prepared(rows, artefact.metric))
    if index.ntotal != task.stop - task.start:
        raise HilbertflowError(
            f"shard {task.number} took {index.ntotal} rows of {task.stop - task.start}", where=collection.url
        )
    path = f"{task.build}/shard-{task.number}.{artefact.kind.kind}.faiss"
    stored = save_index(place, path, index)
    written = ShardFile(**dataclasses.asdict(stored), start=task.start, stop=task.stop)
    remember(place, task.build, f"shard-{task.number}", artefact.hash, written)
    return written
