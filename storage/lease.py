"""One writer an archive: a lease that a run holds while it writes, and that a later run takes over from a dead one.

::

    ROOT/models/NAME/journal/lease-00000003.json        who holds it, written anew every few seconds

A lease is created under the next number or not at all (a hard link on disk, a conditional put on an object store), so
that of two runs at once one succeeds. Whoever holds number n is alone in writing it. A run that dies stops writing: the
next one sees that nothing changes for the time of a lease, and takes number n + 1. No two clocks are compared, but for
leases that are old beyond doubt. On the machine of the dead run, its process is looked up instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from operators.errors import HilbertflowError
from storage.fs import Location
from storage.fs_errors import MissingFileError

FOLDER = "journal"
LEASE_S = float(os.environ.get("HILBERTFLOW_LEASE_S", "30"))
"""Seconds without a word after which a run on another machine is taken for dead."""
_SKEW_S = 300.0  # clocks of machines differ by less
_POLL_S = 0.5


@dataclass(frozen=True)
class Holder:
    """Who writes an archive.

    Parameters
    ----------
    token: of this run, unlike any other's.
    host, pid: where it runs; ``machine`` and ``started`` tell whether a process of that number is still that run.
    beats: how often the lease was written anew.
    """

    token: str
    host: str
    pid: int
    machine: str
    started: str
    beats: int = 0

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(secrets.token_hex(8), socket.gethostname(), os.getpid(), _machine(), _started(os.getpid()))

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; None where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A held lease. ``check`` raises once another run has taken it over."""

    def __init__(self, place: Location, number: int, holder: Holder) -> None:
        self._place, self._number, self._holder = place, number, holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise when a later lease exists: this run was taken for dead."""
        latest = _latest(self._place)
        if latest > self._number:
            raise HilbertflowError(
                "another run took this archive over, as this one had not been heard of", where=self._place.url,
                remedy="let that one finish",
            )  # fmt: skip

    def release(self) -> None:
        """Write no more; the lease is gone, so that the next run need not wait."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(HilbertflowError):
            self._place.delete(_key(self._number))

    def _beat(self) -> None:
        holder = self._holder
        while not self._stop.wait(LEASE_S / 4):
            holder = replace(holder, beats=holder.beats + 1)
            with contextlib.suppress(HilbertflowError):  # the store does not answer: the run will say so
                self._place.write_atomic(_key(self._number), _dump(holder), durable=False)


@contextlib.contextmanager
def held(place: Location, say: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """Hold the lease of the archive at ``place`` while the block runs.

    Waits up to :data:`LEASE_S` seconds to learn whether a run on another machine is dead, and tells through ``say``.
    Raises HilbertflowError when another run is at work.
    """
    lease = _acquire(place, Holder.here(), say)
    try:
        yield lease
    finally:
        lease.release()


def last_beat(place: Location) -> float | None:
    """When the run at ``place`` wrote its lease last, in seconds since 1970; None where nobody holds one."""
    found = [entry.modified for key, entry in place.entries(FOLDER).items() if key.startswith(f"{FOLDER}/lease-")]
    return max((modified for modified in found if modified is not None), default=None)


def _acquire(place: Location, me: Holder, say: Callable[[str], None]) -> Lease:
    taken = 0  # by another one who was faster, though a listing may not tell yet
    while True:
        number = max(_latest(place), taken)
        taken = 0
        if number and not _dead(place, number, say):
            continue  # it ended, or was taken over, while it was watched
        number += 1
        place.create_if_new(_key(number), _dump(me))
        if (holder := _read(place, number)) == me:
            return Lease(place, number, me)
        taken = number if holder is not None else 0


def _dead(place: Location, number: int, say: Callable[[str], None]) -> bool:
    """Whether the run that holds a lease is dead; False when the lease itself is gone. Raises when it is at work."""
    first = _read(place, number)
    if first is None:
        return _latest(place) == number and place.exists(_key(number))  # damaged: nobody can hold it
    if first.alive is not None:
        if first.alive:
            raise _busy(place, first)
        return True
    modified = place.entries(FOLDER).get(_key(number))
    if modified and modified.modified is not None and time.time() - modified.modified > LEASE_S + _SKEW_S:
        return True
    say(f"{place.url}: watching for {LEASE_S:.0f} s whether {first} still writes it")
    end = time.monotonic() + LEASE_S
    while time.monotonic() < end:
        time.sleep(min(_POLL_S, LEASE_S / 8))
        if _latest(place) != number:
            return False
        if (now := _read(place, number)) is not None and now != first:
            raise _busy(place, now)
    return True


def _busy(place: Location, holder: Holder) -> HilbertflowError:
    return HilbertflowError(
        f"another run writes this archive: {holder}", where=place.url,
        remedy="wait for it or stop it; then the same recipe goes on",
    )  # fmt: skip


def _latest(place: Location) -> int:
    names = [name for name in place.children(FOLDER) if name.startswith("lease-") and name.endswith(".json")]
    return max((int(name[6:-5]) for name in names if name[6:-5].isdigit()), default=0)


def _read(place: Location, number: int) -> Holder | None:
    try:
        return Holder(**json.loads(place.read(_key(number))))
    except (MissingFileError, TypeError):
        return None
    except ValueError as error:
        if isinstance(error, HilbertflowError):
            raise
        return None


def _key(number: int) -> str:
    return f"{FOLDER}/lease-{number:08d}.json"


def _dump(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _machine() -> str:
    """What this machine since its start, and this container in it, has alone; empty where that cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process of this number began, in the kernel's ticks; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
