"""Two machines in one: raylets in network namespaces that a cable joins, or on two addresses of the loopback.

Each raylet has its own address, object store and temporary folder. Commands run "on" the head, as a user would there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STORE = 100 << 20
START_S = 60.0


@dataclass(frozen=True)
class Machine:
    """Where a raylet runs. prefix: of a command there; address: of the machine."""

    prefix: tuple[str, ...]
    address: str


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    gcs: for ``--address`` of a run; jobs: of the job server; nodes: addresses, the head first; token: file of the
    secret that Ray asks for.
    """

    head: Machine
    gcs: str
    jobs: str
    nodes: tuple[str, ...]
    token: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin ``hilbertflow ARGUMENTS`` on the head."""
        command = [*self.head.prefix, sys.executable, "-m", "pipelines.cli", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=CHECKOUT, env=_environment(self.token), stdout=pipe, stderr=pipe, text=True
        )

    def call(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextlib.contextmanager
def cluster(cpus: int = 1) -> Iterator[Cluster]:
    """Two raylets of so many CPUs each; all of it gone at the end."""
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf", dir="/tmp"))) for _ in range(2)]
        head, other = stack.enter_context(_machines())
        started = stack.enter_context(_raylets((head, other)))
        token = folders[0] / "token"
        token.write_text(secrets.token_hex(32))
        gcs, jobs = f"{head.address}:6479", f"http://{head.address}:8365"
        common = ["--num-cpus", str(cpus), "--object-store-memory", str(STORE), "--disable-usage-stats", "--block"]
        started.append(_ray(head, folders[0], token, "--head", "--port", "6479", "--include-dashboard", "true",
                            "--dashboard-host", head.address, "--dashboard-port", "8365",
                            *common))  # fmt: skip
        _wait(started[0], folders[0])
        started.append(_ray(other, folders[1], token, "--address", gcs, *common))
        _wait(started[1], folders[1])
        yield Cluster(head, gcs, jobs, (head.address, other.address), token)


@contextlib.contextmanager
def _machines() -> Iterator[tuple[Machine, Machine]]:
    names = [f"hf{os.getpid()}{letter}" for letter in "ab"]
    made = []
    try:
        if shutil.which("ip") is None or any(_ip("netns", "add", name) for name in names):
            yield Machine((), "127.0.0.1"), Machine((), "127.0.0.2")
            return
        made = names
        cable = _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1],
                    "netns", names[1])  # fmt: skip
        machines = []
        for name, address, peer in zip(names, ("10.77.0.1", "10.77.0.2"), ("10.77.0.2", "10.77.0.1"), strict=True):
            inside = ("-n", name)
            cable |= _ip(*inside, "link", "set", "lo", "up") | _ip(*inside, "link", "set", name, "up")
            cable |= _ip(*inside, "addr", "add", f"{address}/24", "dev", name)
            cable |= _ip(*inside, "route", "add", "default", "via", peer)  # by its route Ray finds its own address
            machines.append(Machine(("ip", "netns", "exec", name), address))
        if cable:
            yield Machine((), "127.0.0.1"), Machine((), "127.0.0.2")
        else:
            yield machines[0], machines[1]
    finally:
        for name in made or names:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode


@contextlib.contextmanager
def _raylets(machines: tuple[Machine, Machine]) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):  # the process group: Ray's own processes are in it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for machine in machines:
            for pid in _inside(machine):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _inside(machine: Machine) -> list[int]:
    """Processes that are left on a machine of its own."""
    if not machine.prefix:
        return []
    told = subprocess.run(["ip", "netns", "pids", machine.prefix[-1]], capture_output=True, text=True).stdout
    return [int(pid) for pid in told.split()]


def _ray(machine: Machine, folder: Path, token: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [*machine.prefix, str(BIN / "ray"), "start", "--node-ip-address", machine.address, "--temp-dir",
               str(folder), *arguments]  # fmt: skip
    environment = _environment(token) | {"RAY_TMPDIR": str(folder)}
    with (folder / "start.log").open("wb") as log:
        return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until a raylet is there, by Ray's own word."""
    end, log = time.monotonic() + START_S, folder / "start.log"
    while "Ray runtime started" not in log.read_text():
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError(f"a raylet did not start: {log.read_text()[-3000:]}")
        time.sleep(0.1)


def _environment(token: Path) -> dict[str, str]:
    """A user's, with the same secret on every machine: Ray guards its clusters by one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(CHECKOUT), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
                   "RAY_AUTH_TOKEN_PATH": str(token)}  # fmt: skip
