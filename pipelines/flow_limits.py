"""How much may lie between the stages of a pass at once, so that memory does not grow with the length of a run."""

from __future__ import annotations

from pipelines.recipe import Compute

UNITS_A_CORE = 6
"""Units read, coded and written at once that keep a core at work while others are waited for."""
LEAST_IN_FLIGHT = 40_000_000
"""Bytes that are never grudged: below this a bound costs speed and saves nothing."""
LEAST_UNITS = 3
LEAST_OBJECT_STORE, MOST_OBJECT_STORE = 80_000_000, 512 * 1024 * 1024
"""Bounds of the store of a Ray that is started here; Ray itself takes no less than 75 MiB."""


def in_flight(compute: Compute, unit_bytes: int, cores: int) -> int:
    """Bytes of units that may be in the object store: a fast stage waits when a slow one leaves as many behind.

    Six units a core, 40 MB at least, and no more than the memory that the recipe gives the workers of a stage
    (``compute.memory`` times their number), but for the three units without which nothing moves.
    """
    wanted = max(LEAST_IN_FLIGHT, UNITS_A_CORE * cores * unit_bytes)
    return max(LEAST_UNITS * unit_bytes, min(wanted, compute.memory * (compute.actors or cores)))


def object_store(compute: Compute, unit_bytes: int, cores: int) -> int:
    """Bytes of shared memory for a Ray of this run alone: twice what is in flight, as Ray Data fills half of it.

    A worker maps what it touches of it, and touches all of it in time: with more than is needed, resident memory would
    grow with the length of the run.
    """
    return min(MOST_OBJECT_STORE, max(LEAST_OBJECT_STORE, 2 * in_flight(compute, unit_bytes, cores)))
