"""What tests share."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long a case takes is the neighbours' affair
settings.load_profile("untimed")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, and say why."""
    if item.get_closest_marker("gpu") is not None:
        from cluster.device import missing

        if reason := missing():
            pytest.skip(reason)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one; a test that starts its own runs in another process."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 1024 * 1024,
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, the machine's own; gone after a module, as Playwright's event loop is in the way of others."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install 'hilbertflow[dev]'")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # As root, as in most containers, Chromium starts without its own sandbox only.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()
