"""Recipes as Ray jobs: submit to a cluster's job server, follow the log, learn the exit code.

The job runs `python -m pipelines.cli run` in its own copy of this checkout; nothing but Ray and the dependencies needs
to be installed on the cluster.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import HilbertflowError

ROOMS = ("operators", "storage", "cluster", "pipelines")
MAX_RECIPE = 64 * 1024
_EXCLUDES = [".git", ".venv", "data", "out", "build", "dist", "tests", "notebooks", "**/__pycache__", "**/.*_cache"]
_ROOT = Path(__file__).resolve().parents[1]
_PAUSE_S = 0.5
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Job:
    """A submitted job. address: of the job server; id: as `ray job` shows it."""

    address: str
    id: str

    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._call(lambda client: client.get_job_status(self.id).value))

    def log(self) -> str:
        """Everything it has printed so far."""
        return str(self._call(lambda client: client.get_job_logs(self.id)))

    def stop(self) -> bool:
        """Ask it to end; what it has written stays, the same recipe goes on from there. True when it was running."""
        return bool(self._call(lambda client: client.stop_job(self.id)))

    def follow(self, write: Callable[[str], Any]) -> int:
        """Pass on its output as it comes; returns its exit code (-1 when it was stopped or never began).

        A connection that breaks off is made again, and nothing is passed on twice.
        """
        passed = 0

        async def tail(client: Any) -> None:
            nonlocal passed
            known = passed
            async for text in client.tail_job_logs(self.id):
                if fresh := text[known:]:
                    write(fresh)
                    passed += len(fresh)
                known = max(0, known - len(text))

        while True:
            with contextlib.suppress(HilbertflowError):  # broken off: whether the server is there, `ended` finds out
                self._call(lambda client: asyncio.run(tail(client)))
            if self.ended:
                break
            time.sleep(_PAUSE_S)
        if rest := self.log()[passed:]:
            write(rest)
        info = self._call(lambda client: client.get_job_info(self.id))
        code = info.driver_exit_code
        if code is None:
            return 0 if info.status.value == "SUCCEEDED" else -1
        return int(code)

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self.status() in _ENDED

    def _call(self, action: Callable[[Any], Any]) -> Any:
        return _call(self.address, action, self.id)


def submit(
    recipe: str,
    address: str,
    sets: Sequence[str] = (),
    *,
    arguments: Sequence[str] = ("--json",),
    memory: int | None = None,
    python: str = "python",
) -> Job:
    """Run a recipe on the cluster whose job server is at `address`, such as http://HEAD:8265.

    recipe: a file on this machine, or the name of one that comes along. sets: `key=value` overrides. arguments: further
    ones of `hilbertflow run`. memory: bytes to reserve for the driver. python: the interpreter on the
    cluster that has the dependencies. Paths and URLs in the recipe are those of the
    cluster.
    """
    command = [python, "-m", "pipelines.cli", "run"]
    before = ""
    file = Path(recipe)
    if file.is_file():
        body = file.read_bytes()
        if len(body) > MAX_RECIPE:
            raise HilbertflowError(f"has {len(body)} bytes", where=recipe, remedy=f"a recipe has {MAX_RECIPE} at most")
        # The job's working directory is a private copy, so the recipe's text travels in the command.
        before = f"echo {base64.b64encode(body).decode()} | base64 -d > job-recipe.yaml && exec "
        recipe = "job-recipe.yaml"
    command += [recipe, *(part for item in sets for part in ("--set", item)), "--address", "auto", *arguments]
    return Job(
        address,
        _call(
            address,
            lambda client: client.submit_job(
                entrypoint=before + shlex.join(command), runtime_env=_environment(), entrypoint_memory=memory
            ),
        ),
    )


def _environment() -> dict[str, Any]:
    """The checkout as working directory; an installed copy sends its four packages instead of all site-packages."""
    if (_ROOT / "pyproject.toml").is_file():
        return {"working_dir": str(_ROOT), "excludes": _EXCLUDES}
    return {"py_modules": [str(_ROOT / room) for room in ROOMS]}


def _call(address: str, action: Callable[[Any], Any], job: str = "") -> Any:
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise HilbertflowError("is not an HTTP address", where=address, remedy="name the job server: http://HEAD:8265")
    for chatty in ("ray._private.runtime_env.packaging", "ray.dashboard.modules"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return action(JobSubmissionClient(address))
    except (ConnectionError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if job and "does not exist" in reason:
            raise HilbertflowError(f"has no job {job!r}", where=address, remedy="`submit` prints the id") from None
        raise HilbertflowError(
            f"the job server does not answer ({reason[:200]})",
            where=address,
            remedy="is it the address of a head node's dashboard?",
        ) from None
