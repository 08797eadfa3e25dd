"""What keeps Ray from starting, or from answering, in one line with a remedy; and SIGTERM stays our own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from operators.errors import HilbertflowError

_TIMED_OUT = "timed out during startup"  # Ray raises a bare Exception that says so


@contextmanager
def ray_starts(address: str | None) -> Iterator[None]:
    """Around ``ray.init`` at ``address`` (None: one of its own): what goes wrong becomes a `HilbertflowError`.

    What this process did on SIGTERM it does afterwards: Ray would print the stacks of its core, and leave.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except HilbertflowError:
        raise
    except SystemExit as error:  # of Ray's handler, while it starts
        if error.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    except (ConnectionError, RuntimeError) as error:
        raise HilbertflowError(
            f"no Ray cluster answers ({type(error).__name__})", where=address or "local",
            remedy="start one with `ray start --head`, or leave --address out to run here",
        ) from error  # fmt: skip
    except Exception as error:
        if _TIMED_OUT not in str(error):
            raise
        raise HilbertflowError(
            "Ray did not start in time: the machine is too busy, or short of memory", where=address or "local",
            remedy="try again when other work is done, or give --address of a Ray that runs",
        ) from error  # fmt: skip
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
