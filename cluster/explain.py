"""What a search tells of itself: where it looked and why, how much it read and compared, how long each step took."""

from __future__ import annotations

from typing import Any

from cluster.index_store import Build
from cluster.planner import Choice
from cluster.probing import TUNED_K
from cluster.query import Query
from cluster.shard_set import Answer


def explained(query: Query, choice: Choice, answer: Answer, build: Build | None, queries: int) -> dict[str, Any]:
    """The `explain` of an answer to ``queries`` queries that were searched together; counts are of all of them.

    tier and reason; level: of the archive whose vectors were compared, `index` where an index has its own; settings:
    the index's, tuned, widened for k above 10, and overridden; recall: at 10, when it was tuned, None where more is
    asked for; version of the collection and how many rows of its log were compared; lists_probed, rows_scanned,
    requests and the rounds of them that had to wait for one another, bytes_read, cache_hits; seconds by step.
    """
    told: dict[str, Any] = {"tier": choice.tier, "reason": choice.reason, "queries": queries}
    if build is None:
        told |= {"level": answer.level, "settings": query.overrides.given()}
    else:
        recall = next((trial["recall"] for trial in build.trials if trial.get("chosen")), None)
        told |= {
            "level": "index",
            "settings": build.kind.for_rows(build.tuned, query.k, build.count).given() | query.overrides.given(),
            "recall": recall if query.k <= TUNED_K else None, "shards": len(build.shards),
        }  # fmt: skip
    return told | {
        "version": answer.version, "log_rows": answer.log_rows, "lists_probed": answer.lists_probed,
        "rows_scanned": answer.rows_scanned, "requests": answer.requests, "rounds": answer.rounds,
        "bytes_read": answer.bytes_read, "cache_hits": answer.cache_hits, "seconds": dict(answer.seconds),
    }  # fmt: skip
