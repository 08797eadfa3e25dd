"""Whether Ray runs a task again, since the worker that ran it is dead, and what of it was committed before."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock


def again() -> bool:
    """Whether an earlier attempt at the task that runs here came to no end. Ray has this nowhere else."""
    from ray._private.worker import global_worker

    attempt = getattr(getattr(global_worker, "core_worker", None), "get_current_task_attempt_number", None)
    return attempt is not None and bool(attempt() > 0)


class Committed:
    """Units that were written before the task that runs here was begun again; none in a first attempt.

    They are listed once a process, when it is first asked in a task that runs again: what others write later are units
    of theirs.
    """

    def __init__(self, written: Callable[[], set[int]]) -> None:
        self._written, self._mine = written, set[int]()
        self._found: set[int] | None = None
        self._lock = Lock()

    def add(self, unit: int) -> None:
        """This process has written it."""
        self._mine.add(unit)

    def __contains__(self, unit: int) -> bool:
        if not again():
            return False
        with self._lock:
            if self._found is None:
                self._found = self._written()
        return unit in self._found or unit in self._mine
