"""The shard writer against stock zarr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.shard import pack


def test_stock_zarr_reads_a_packed_shard(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(10, 4), chunks=(2, 4), shards=(8, 4), dtype="int16", fill_value=0,
        serializer=BytesCodec(), compressors=[Crc32cCodec()],
    )  # fmt: skip
    values = np.arange(40, dtype="<i2").reshape(10, 4)
    for shard, rows in ((0, values[:8]), (1, values[8:])):
        chunks: list[bytes | None] = [rows[i : i + 2].tobytes() for i in range(0, len(rows), 2)]
        if shard == 0:
            chunks[1] = None
        packed = pack(chunks, 4)
        assert packed is not None
        target = tmp_path / "a" / "c" / str(shard) / "0"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed)
    expected = values.copy()
    expected[2:4] = 0
    np.testing.assert_array_equal(array[:], expected)


def test_a_shard_of_nothing_is_no_object() -> None:
    assert pack([None, None], 4) is None
