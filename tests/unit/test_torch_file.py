"""PyTorch files: read without Torch and without running their pickle; checked against Torch itself."""

from __future__ import annotations

import builtins
import collections
import io
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from operators.errors import HilbertflowError
from storage.checkpoint import open_checkpoint
from storage.pickle_program import Call, Global, PickleError, evaluate

torch = pytest.importorskip("torch", reason="writes the files with Torch (the extra 'encoders')")


def tensors() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 7, generator=generator)
    result = {
        "weight": weight,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "row": weight[3],
        "rows": weight[2:9],
        "tied": weight,
        "parameter": torch.nn.Parameter(torch.randn(5, generator=generator)),
        "column": torch.randn(4, 1, generator=generator),
    }
    kinds = ["float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", "uint16", "uint32",
             "uint64", "float8_e4m3fn", "float8_e5m2"]  # fmt: skip
    return result | {kind: (weight * 10).abs().to(getattr(torch, kind)) for kind in kinds}


def same(path: Path, expected: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(str(path))
    assert {spec.name for spec in checkpoint.tensors} == set(expected)
    for spec in checkpoint.tensors:
        tensor = expected[spec.name].detach().contiguous()
        assert spec.shape == tuple(tensor.shape)
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert checkpoint.read(spec) == raw, spec.name


def test_every_type_and_view(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "x.bin")
    same(tmp_path / "x.bin", tensors())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    torch.save(collections.OrderedDict(tensors()), tmp_path / "x.pt", pickle_protocol=protocol)
    same(tmp_path / "x.pt", tensors())


def test_a_training_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    import argparse

    saved = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
             "args": argparse.Namespace(lr=0.1),
             "list": [torch.ones(2), "text", None, {1: torch.zeros(3)}]}  # fmt: skip
    torch.save(saved, tmp_path / "x.pth")
    names = {f"state_dict.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        names |= {f"optimizer.state.{number}.{name}": value for name, value in state.items()}
    same(tmp_path / "x.pth", names | {"list.0": torch.ones(2), "list.3.1": torch.zeros(3)})


def test_a_directory_and_shards(tmp_path: Path) -> None:
    parts = list(tensors().items())
    for number, part in enumerate((parts[::2], parts[1::2])):
        torch.save(dict(part), tmp_path / f"pytorch_model-{number}.bin")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    listed = {name: f"pytorch_model-{at % 2}.bin" for at, (name, _) in enumerate(parts)}
    import json

    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listed}))
    same(tmp_path, tensors())
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    assert len({spec.file for spec in open_checkpoint(str(tmp_path)).tensors}) == 1


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("raise SystemExit('it ran')",)


def test_nothing_runs(tmp_path: Path) -> None:
    torch.save({"bomb": Bomb(), "weight": torch.ones(3)}, tmp_path / "x.bin")
    same(tmp_path / "x.bin", {"weight": torch.ones(3)})
    torch.save({"bomb": Bomb()}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(HilbertflowError, match=r"plain pickle .* was not executed"):
        open_checkpoint(str(tmp_path / "old.bin"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: torch.randn(4, 5).t(), r"tensor 'x': its values do not lie in C order.*contiguous"),
        (lambda: torch.randn(4, 5)[:, :2], "do not lie in C order"),
        (lambda: torch.ones(1).expand(7), "do not lie in C order"),
        (lambda: torch.eye(3).to_sparse(), "_rebuild_sparse_tensor, which is not known"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8), "not known|unknown storage"),
    ],
)
def test_tensors_that_cannot_be_read_are_named(tmp_path: Path, value: Any, says: str) -> None:
    torch.save({"x": value()}, tmp_path / "x.bin")
    with pytest.raises(HilbertflowError, match=says):
        open_checkpoint(str(tmp_path / "x.bin"))


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> None:
    torch.save({"w": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "compression", "says"),
    [
        (lambda r: None, zipfile.ZIP_DEFLATED, "is compressed or encrypted"),
        (lambda r: r.pop("x/data/0"), zipfile.ZIP_STORED, "record '0' is missing"),
        (lambda r: r.update({"x/data/0": bytes(396)}), zipfile.ZIP_STORED, "reach past its record of 396"),
        (lambda r: r.update({"x/byteorder": b"big"}), zipfile.ZIP_STORED, "big-endian"),
        (lambda r: r.pop("x/data.pkl"), zipfile.ZIP_STORED, "not one of PyTorch's"),
        (lambda r: r.update({"x/data.pkl": r["x/data.pkl"][:-9]}), zipfile.ZIP_STORED, "pickle cannot be read"),
        (lambda r: r.update({"x/data.pkl": b""}), zipfile.ZIP_STORED, "pickle cannot be read"),
    ],
)
def test_archives_that_lie(tmp_path: Path, change: Any, compression: int, says: str) -> None:
    rewritten(tmp_path / "x.pt", change, compression)
    with pytest.raises(HilbertflowError, match=says) as caught:
        open_checkpoint(str(tmp_path / "x.pt"))
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_truncated_and_other_files(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    for length in (0, 3, 50, len(data) // 2, len(data) - 5):
        (tmp_path / "x.pt").write_bytes(data[:length])
        with pytest.raises(HilbertflowError):
            open_checkpoint(str(tmp_path / "x.pt"))


def no_storage(identity: Any) -> Any:
    raise PickleError(f"a storage {identity}")


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -(1 << 100), 2.5, "é", b"x", (), (1,), (1, 2, 3, 4), [1, [2]], {"a": {1: (2,)}}, [[]] * 3,
     {"x": list(range(3000)), "y": "z" * 70_000}, {1.5: None}],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_worked_out(value: Any, protocol: int) -> None:
    if protocol > 2 or not isinstance(value, bytes):  # protocol 2 writes bytes as a call of a codec
        assert evaluate(pickle.dumps(value, protocol), no_storage, {}) == value


def test_calls_are_noted_and_not_made() -> None:
    made = evaluate(pickle.dumps(Bomb()), no_storage, {})
    assert isinstance(made, Call) and made.function == Global("builtins", "exec")


NESTED = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (at, at, at + 1) for at in range(40))
"""A program that leaves a list of two lists of two lists …, 40 deep."""


def test_a_storage_called_by_lists_that_hold_one_another_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02(X\x07\0\0\0storage" + NESTED + b"X\x01\0\0\0aNNtQ.")
    with pytest.raises(HilbertflowError, match="unknown storage of type list"):
        open_checkpoint(str(tmp_path / "x.pt"))


def test_programs_that_would_exhaust_memory_or_time() -> None:
    for program in (
        b"\x80\x02r\xff\xff\xff\x7f.",  # memo slot 2^31
        b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b".",  # text of 2^60 bytes
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # number of 2^31 bytes
        b"\x80\x02(((.", b"\x80\x02u.", b"\x80\x02h\x05.", b"\x80\x02a.", b"\x80\x02.", b"\x80\x02N", b"",
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02c__builtin__\n", b"\x80\x02N" + b"\x85" * 100,
        b"\x80\x04" + NESTED + b"X\x01\0\0\0x\x93.",  # a module called by lists that hold one another 2^40 times
    ):  # fmt: skip
        begin = time.process_time()
        with pytest.raises(PickleError):
            evaluate(program, no_storage, {})
        assert time.process_time() - begin < 1


def test_lists_that_hold_one_another_many_times_over_end(tmp_path: Path) -> None:
    value: Any = []
    for _ in range(30):
        value = [value] * 10
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(value))
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    with pytest.raises(HilbertflowError, match="holds more than"):
        open_checkpoint(str(tmp_path / "x.pt"))
