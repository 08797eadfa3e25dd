"""A Ray that lives until it is killed: ``python -m tests.faults.keep_ray FILE`` writes its address to the file."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import ray


def main(at: Path) -> None:
    """Start it, tell where it is, and wait."""
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
        logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    part = at.with_suffix(".part")
    part.write_text(str(ray.get_runtime_context().gcs_address))
    os.replace(part, at)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
