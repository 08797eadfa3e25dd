"""What a process that opens a collection does with the memory that it took for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.engine import SearchEngine
from tests.collection_fixtures import archive_vectors, clustered


@pytest.fixture
def pool() -> Iterator[None]:
    """Arrow's own before and after."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.mimalloc_memory_pool())
    yield
    pa.set_memory_pool(before)


@pytest.mark.parametrize(("chosen", "taken"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_gives_memory_back_unless_another_pool_is_chosen(
    pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, taken: str
) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if chosen:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", chosen)
    engine = SearchEngine.open(archive_vectors(tmp_path, clustered(50, 8), "ip"))
    assert engine.search(clustered(1, 8), 3).ids.shape == (1, 3)
    assert pa.default_memory_pool().backend_name == taken
