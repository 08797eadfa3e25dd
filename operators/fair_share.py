"""Threads stay on the scheduler they were on: an encoder may not take the machine for itself.

SVT-AV1 4, run by root, moves its threads *and the thread that opens it* to the real-time scheduler at priority 99.
Every process and thread started from there inherits that and is never preempted: a worker, a whole Ray cluster, a
browser. Two busy threads of this kind stop a machine of two cores, signals and servers included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def fair_share() -> Iterator[None]:
    """What happens inside leaves this thread's scheduling policy, and that of threads made meanwhile, as it was."""
    if not hasattr(os, "sched_getscheduler"):  # not Linux: nobody does it there
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    before = set(os.listdir("/proc/self/task"))
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, priority)
        for thread in set(os.listdir("/proc/self/task")) - before:
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(int(thread)) != policy:
                    os.sched_setscheduler(int(thread), policy, priority)
