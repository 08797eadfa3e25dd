"""What was asked in the last minute, second by second, and in all: cheap enough to count every search."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SECONDS = 60
SLOTS = SECONDS + 1  # the second that runs, and those before it


@dataclass
class Recent:
    """Counts of one collection in one process. Kept by the event loop alone, so it needs no lock.

    queries, partial: since the process began. longest: seconds of the slowest search of the last minute.
    """

    queries: int = 0
    partial: int = 0
    _stamp: list[int] = field(default_factory=lambda: [-1] * SLOTS)
    _count: list[int] = field(default_factory=lambda: [0] * SLOTS)
    _time: list[float] = field(default_factory=lambda: [0.0] * SLOTS)
    _slowest: list[float] = field(default_factory=lambda: [0.0] * SLOTS)
    _searches: list[int] = field(default_factory=lambda: [0] * SLOTS)

    def add(self, queries: int, seconds: float, partial: bool = False) -> None:
        """One search of so many queries that took so long."""
        now = int(time.monotonic())
        slot = now % SLOTS
        if self._stamp[slot] != now:
            self._stamp[slot], self._count[slot], self._time[slot] = now, 0, 0.0
            self._slowest[slot], self._searches[slot] = 0.0, 0
        self._count[slot] += queries
        self._searches[slot] += 1
        self._time[slot] += seconds
        self._slowest[slot] = max(self._slowest[slot], seconds)
        self.queries += queries
        self.partial += queries if partial else 0

    def by_second(self) -> list[int]:
        """Queries of each of the last 60 whole seconds, oldest first."""
        now = int(time.monotonic())
        return [self._count[t % SLOTS] if self._stamp[t % SLOTS] == t else 0 for t in range(now - SECONDS, now)]

    def latency(self) -> tuple[float, float]:
        """Mean and longest time of the last minute's searches, in seconds; zeros without any."""
        now = int(time.monotonic())
        slots = [slot for slot in range(SLOTS) if now - SECONDS < self._stamp[slot] <= now]
        searches = sum(self._searches[slot] for slot in slots)
        if not searches:
            return 0.0, 0.0
        return sum(self._time[slot] for slot in slots) / searches, max(self._slowest[slot] for slot in slots)
