"""Shards built side by side by a pool of Ray actors; a shard whose actor dies is built again by another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.artefact import Artefact
from cluster.builder import ShardTask, build_shard
from cluster.index_store import ShardFile
from operators.errors import HilbertflowError

ATTEMPTS = 4  # a shard that has killed so many actors is at fault itself (usually: too large for their memory)


class Builder:
    """Builds shards in its own process; made a Ray actor by `build_shards`."""

    def __init__(self, url: str) -> None:
        from storage import archive

        self._collection = archive.open(url)

    def build(self, artefact: Artefact, task: ShardTask) -> ShardFile:
        """Build one shard; see `cluster.builder.build_shard`."""
        return build_shard(self._collection, artefact, task)

    def process(self) -> int:
        """The operating system's number of this process."""
        return os.getpid()


def build_shards(
    url: str, work: Sequence[tuple[Artefact, ShardTask]], actors: int, started: Callable[[Any], None] | None = None
) -> Iterator[tuple[ShardTask, ShardFile]]:
    """Build all of `work` with up to `actors` actors of one core; yields shards as they are done, in any order.

    `started` is told of every actor handle (for those who watch or, in tests, kill). Raises `HilbertflowError` when a
    shard fails by its own fault, and when its actors died `ATTEMPTS` times.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    remote: Any = ray.remote(num_cpus=1, max_restarts=0)(Builder)
    shared = {artefact.hash: ray.put(artefact) for artefact, _ in work}
    queue = [(artefact.hash, task, 1) for artefact, task in reversed(work)]
    running: dict[Any, tuple[Any, str, ShardTask, int]] = {}
    idle: list[Any] = []

    def start(item: tuple[str, ShardTask, int]) -> None:
        actor = idle.pop() if idle else remote.remote(url)
        if started is not None:
            started(actor)
        running[actor.build.remote(shared[item[0]], item[1])] = (actor, *item)

    try:
        while queue or running:
            while queue and len(running) < actors:
                start(queue.pop())
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, artefact_hash, task, attempt = running.pop(done)
            try:
                result = ray.get(done)
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, HilbertflowError) else None
                raise cause or HilbertflowError(
                    f"building shard {task.number} failed ({type(error.cause).__name__}: {error.cause})", where=url
                ) from None
            except RayActorError as error:
                if getattr(error, "actor_init_failed", False):
                    last = str(error).strip().splitlines()[-1]
                    raise HilbertflowError(f"a builder could not start ({last})", where=url) from None
                if attempt == ATTEMPTS:
                    raise HilbertflowError(
                        f"the builders of shard {task.number} died {ATTEMPTS} times", where=url,
                        remedy="use more shards, or workers with more memory",
                    ) from None  # fmt: skip
                queue.append((artefact_hash, task, attempt + 1))
                continue
            idle.append(actor)
            yield task, result
    finally:
        for actor in [*idle, *(entry[0] for entry in running.values())]:
            ray.kill(actor)
