"""The catalog of a root: rows that were lost come back, whoever lists; a root that may only be read is listed too."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import call
from storage import catalog
from storage import manifest as manifests
from storage.fs import Location
from tests.archived_model import archived_child, archived_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of a model and its child."""
    root = tmp_path_factory.mktemp("catalog")
    archived_child(root, "after", archived_model(root), 1)
    return root / "archives"


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "archives"))


@pytest.fixture
def readable(root: Path) -> Iterator[str]:
    """Its URL on a server that only gives."""
    handler = functools.partial(_Quiet, directory=str(root.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/archives"
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "catalog").iterdir()}


def test_rows_that_are_missing_are_written_by_who_lists(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, listed = files(root), catalog.ls(str(root))
    shutil.rmtree(root / "catalog")
    assert call(["models", "ls", str(root)]) == 0 and "after" in capsys.readouterr().out
    assert files(root) == before
    (root / "models" / "small" / "zarr.json").unlink()  # no archive is asked again
    assert catalog.ls(str(root)) == listed


def test_rows_of_an_earlier_version_and_damaged_ones_are_written_anew(root: Path) -> None:
    before = files(root)
    (root / "catalog" / "model-after.json").write_bytes(b"{")
    old = json.loads(before["model-small.json"]) | {"version": 0}
    (root / "catalog" / "model-small.json").write_text(json.dumps(old))
    catalog.ls(str(root))
    assert files(root) == before


def test_a_damaged_model_gets_no_row_and_a_moved_one_not_that_of_another(root: Path) -> None:
    before = files(root)
    shutil.copytree(root / "models" / "small", root / "models" / "moved")
    (root / "catalog" / "model-after.json").unlink()
    (root / "models" / "after" / "tensors.parquet").write_bytes(b"")
    assert len(catalog.ls(str(root))) == 3
    assert files(root) == {"model-small.json": before["model-small.json"]}


def test_a_root_that_may_only_be_read_is_listed(root: Path, readable: str) -> None:
    pytest.importorskip("aiohttp", reason="reads over HTTP")
    listed = catalog.ls(str(root))
    shutil.rmtree(root / "catalog")
    began = time.monotonic()
    assert catalog.ls(readable) == listed
    assert time.monotonic() - began < 3, "a server that does not take files is not asked again and again"
    assert not (root / "catalog").exists()
    (root / "catalog").write_bytes(b"in the way")  # on disk: nothing can be written there
    assert catalog.ls(str(root)) == listed


def test_many_writers_leave_whole_rows(root: Path) -> None:
    before = files(root)
    shutil.rmtree(root / "catalog")
    place, failed = Location(str(root)), list[BaseException]()

    def work(at: int) -> None:
        try:
            for _ in range(5):
                if at % 2:
                    assert len(catalog.ls(str(root))) == 2
                else:
                    catalog.add(place, manifests.load(place.join("models", "after")))
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == [] and files(root) == before


def test_a_row_made_of_an_archive_that_was_replaced_meanwhile_does_not_stay(root: Path) -> None:
    before, place = files(root), Location(str(root))
    stale = json.loads(before["model-small.json"]) | {"fingerprint": "of another", "units": 99}
    assert catalog._kept(place, place.join("models", "small"), stale)
    assert files(root) == before
