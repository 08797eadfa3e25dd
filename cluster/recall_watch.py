"""Recall of a served collection: queries that clients asked, answered again by comparing every row.

The comparison is made in the ingress process, in a thread, beside what clients ask; nobody waits for it.
"""

from __future__ import annotations

import asyncio
from itertools import groupby

import numpy as np

from cluster.query import Query
from cluster.service import CollectionService
from cluster.shard_set import ShardSet

LEAST = 8  # queries that an estimate is made of


async def estimated_recall(service: CollectionService) -> dict[str, float]:
    """Set recall by tier of the queries that were asked since the last estimate, each at its own k and settings.

    Empty when too few were asked, or when rows changed while they were compared.
    """
    asked = sorted(service.asked, key=lambda one: repr(one[1]))
    if len(asked) < LEAST:
        return {}
    service.asked.clear()
    version = service.view.version
    vectors = np.stack([vector for vector, _ in asked])
    exact = ShardSet(service.collection, {}, log=service.log, threads=1)
    truth = await asyncio.to_thread(exact.search, vectors, Query(max(query.k for _, query in asked), "exact"), version)
    shares: dict[str, list[float]] = {}
    at = 0
    for query, group in groupby(asked, key=lambda one: one[1]):
        some = [vector for vector, _ in group]
        found = await service.search(np.stack(some), query, remembered=False)
        if found.partial or found.explain["version"] != truth.version:
            return {}
        for number in range(len(some)):
            true = truth.rows[at + number][: query.k]
            shares.setdefault(found.explain["tier"], []).append(float(np.isin(true, found.rows[number]).mean()))
        at += len(some)
    return {tier: float(np.mean(some)) for tier, some in shares.items()}
