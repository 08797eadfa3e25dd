"""A command of ours on a terminal of its own: what it shows there, what it does about keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(arguments: Sequence[str], *keys: tuple[str, str], columns: int = 80) -> tuple[int, str]:
    """Exit code of ``hilbertflow arguments``, and what stood on the screen without colours and cursor codes.

    ``keys`` are pressed in their order, each when the text that is its first half (a pattern) has appeared.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who runs tests in the background has it ignored
        os.execv(sys.executable, [sys.executable, "-m", "pipelines.cli", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown, waited, left, deadline = b"", 0, list(keys), time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.05)[0]:
                try:
                    part = os.read(terminal, 1 << 16)
                except OSError:  # Linux says so when the other side has closed
                    break
                if not part:
                    break
                shown += part
            if left and re.search(left[0][0], shown[waited:].decode(errors="replace")):
                time.sleep(0.5)  # as a person would: a signal that comes between a prompt and its read is seen after it
                os.write(terminal, left.pop(0)[1].encode())
                waited = len(shown)
        else:
            os.kill(pid, 9)
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), _CODES.sub("", shown.decode(errors="replace")).replace("\r\n", "\n")
