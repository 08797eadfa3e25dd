"""How many replicas of a shard group Ray Serve keeps: by searches at their doors too, which it does not carry.

Serve takes this module along by value, so nothing of ours is imported here.
"""

from __future__ import annotations

from typing import Any

SEARCHES = "searches"
"""What a replica tells Serve's controller, a few times a second: searches that it holds past Serve."""


def by_searches(context: Any) -> tuple[float, dict[str, Any]]:
    """Replicas for what is under way, by the past half minute; bounds and delays are Serve's.

    context: ``ray.serve.config.AutoscalingContext``; a Serve that has none takes no policy (`cluster.serve_app`).
    """
    at_doors = sum((context.aggregated_metrics or {}).get(SEARCHES, {}).values())
    return (at_doors + context.total_num_requests) / context.config.get_target_ongoing_requests(), {}
