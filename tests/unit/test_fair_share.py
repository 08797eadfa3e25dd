from __future__ import annotations

import os
import threading
from contextlib import suppress

import numpy as np
import pytest

from operators.bitstream import ENCODERS, VideoKind
from operators.fair_share import fair_share
from operators.video import encode_plane


def _policies() -> set[int]:
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(int(thread)))
    return found


@pytest.mark.parametrize("kind", ENCODERS)
def test_no_encoder_changes_who_is_scheduled_first(kind: VideoKind) -> None:
    """SVT-AV1 run by root does: threads and processes made later would inherit it."""
    before = _policies()
    encode_plane(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 200, kind)
    assert _policies() == before


def test_threads_made_inside_are_put_back() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    try:
        with fair_share():
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            except PermissionError:
                pytest.skip("needs the right to use the real-time scheduler")
            thread.start()
            assert thread.native_id is not None
            assert os.sched_getscheduler(thread.native_id) == os.SCHED_FIFO
        assert os.sched_getscheduler(thread.native_id) == os.sched_getscheduler(0) == os.SCHED_OTHER
    finally:
        end.set()
