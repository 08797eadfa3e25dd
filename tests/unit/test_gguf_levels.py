"""Quantized blocks of a GGUF file in an archive: the bytes at the exact level, the values they stand for below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.bench.local import archive_model
from pipelines.restore import restore
from storage.gguf import BLOCKS, DEQUANTIZED, block_size, dequantize
from storage.model import ModelArchive
from storage.tensor_file import TensorFile
from tests.fixtures import write_gguf

SHAPE = (24, 320)


def blocks(name: str) -> bytes:
    """Blocks with sound scales: bytes of a matrix of SHAPE."""
    values, width = block_size(name)
    raw = np.random.default_rng(3).integers(0, 256, (SHAPE[0] * SHAPE[1] // values, width), np.uint8)
    scales = np.random.default_rng(4).normal(size=(len(raw), 2)).astype("<f2").view(np.uint8)
    raw[:, :2] = scales[:, :2]
    if name == "Q4_1":
        raw[:, 2:4] = scales[:, 2:]
    return raw.tobytes()


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelArchive:
    """Planes of 1,024 bytes cut every tensor in the middle of blocks."""
    folder = tmp_path_factory.mktemp("gguf")
    floats = np.random.default_rng(5).normal(size=(96, 96)).astype("<f4")
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {"w": (0, floats.shape, floats.tobytes())}
    for number, (name, _, _) in BLOCKS.items():
        if name in DEQUANTIZED:
            tensors[name] = number, SHAPE, blocks(name)
    source = write_gguf(folder / "m.gguf", tensors)
    return archive_model(source, folder, "operators.1.side=32", "operators.1.layout=raster", "operators.4.coder=rans",
                         "operators.2.method=uniform")  # fmt: skip


@pytest.mark.parametrize("name", DEQUANTIZED)
def test_values_below_the_exact_level_and_bytes_at_it(handle: ModelArchive, name: str) -> None:
    expected = dequantize(blocks(name), name).reshape(SHAPE)
    assert handle[name].read("exact").tobytes() == blocks(name)
    for level in handle.levels[:-1]:
        np.testing.assert_array_equal(handle[name].read(level), expected)
    np.testing.assert_array_equal(handle[name].read(0, slice(5, 9)), expected[5:9])
    np.testing.assert_array_equal(np.concatenate(list(handle[name].chunks(0, 45, 700))), expected.reshape(-1)[45:700])


def test_a_preview_of_the_whole_file_is_a_float_checkpoint(handle: ModelArchive, tmp_path: Path) -> None:
    restore(handle.url, str(tmp_path / "preview.safetensors"), 0)
    restore(handle.url, str(tmp_path / "exact.safetensors"))
    preview, exact = load_file(tmp_path / "preview.safetensors"), load_file(tmp_path / "exact.safetensors")
    for name in DEQUANTIZED:
        np.testing.assert_array_equal(preview[name], dequantize(blocks(name), name).reshape(SHAPE))
        assert exact[name].tobytes() == blocks(name)
    assert preview["w"].shape == (96, 96) and np.abs(preview["w"] - exact["w"]).max() > 0


def test_rows_as_a_file(handle: ModelArchive) -> None:
    data = b"".join(TensorFile(handle["Q4_0"], 0, "npy", 3, 7).read())
    assert data.endswith(dequantize(blocks("Q4_0"), "Q4_0").reshape(SHAPE)[3:7].tobytes())
    data = b"".join(TensorFile(handle["Q4_0"], "exact", "npy").read())
    assert data.endswith(blocks("Q4_0"))
