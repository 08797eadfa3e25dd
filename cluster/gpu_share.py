"""Which collections of a service are searched on GPUs, and how much of one each replica asks Ray for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import faiss

from cluster.config import CollectionConfig
from cluster.device import missing, say_once
from cluster.index_store import Build
from operators.errors import HilbertflowError


@dataclass(frozen=True)
class Gpus:
    """Those of a Ray cluster that are not given away yet; `reason` says why there are none."""

    count: float
    reason: str = ""

    @classmethod
    def found(cls) -> Gpus:
        """Of the Ray of this process; before one is started here, those of this machine."""
        import ray

        if ray.is_initialized():
            count = float(ray.cluster_resources().get("GPU", 0))
            return cls(count, "" if count else "the cluster has no GPU")
        reason = missing()
        return cls(0 if reason else float(faiss.get_num_gpus()), reason)

    def less(self, taken: float) -> Gpus:
        """What is left when some are given away."""
        return replace(self, count=max(0.0, self.count - taken))


def share(item: CollectionConfig, tier: str, builds: Mapping[str, Build], groups: int, there: Gpus) -> float:
    """GPUs of each replica of a collection's shard groups; 0 where they search on the CPU.

    tier: of queries that name none. `auto` takes GPUs where all replicas can have theirs, and says once where it takes
    none. Raises `HilbertflowError` for `cuda` where the index has no form for one, or there is none.
    """
    if item.device == "cpu" or tier != "ivfpq":
        return 0
    reason = _against(item, builds["ivfpq"], groups, there)
    if not reason:
        return item.gpus
    where = f"collections {item.name}: device"
    if item.device == "cuda":
        raise HilbertflowError(f"is cuda, but {reason}", where=where, remedy="or use device auto or cpu")
    say_once(f"{where}: auto searches ivfpq on the CPU: {reason}")
    return 0


def _against(item: CollectionConfig, build: Build, groups: int, there: Gpus) -> str:
    wanted = groups * (item.max_replicas or item.replicas) * item.gpus
    if there.reason:
        return there.reason
    if build.kind.for_gpu() != build.kind:
        return "its index has codes for the CPU; index.device: cuda in its recipe builds others"
    if item.placement == "ingress":
        return "the ingress has no GPU"
    if item.device == "auto" and wanted > there.count:
        return f"its replicas want {wanted:g} GPUs of {there.count:g}"
    return ""
