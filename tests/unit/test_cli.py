"""The command line on real archives, small and made without a cluster."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from operators.errors import HilbertflowError
from pipelines import cli, console
from pipelines.bench import MODULES
from pipelines.commands.serving import BENCHES
from pipelines.recipe import Recipe, load
from pipelines.run import run_here
from storage import catalog

COMMANDS = {
    "run", "submit", "status", "stop", "ls", "info", "verify", "restore", "cp", "gc",
    "search", "similar", "export", "serve", "bench", "schema",
}  # fmt: skip


def archived(recipe: Recipe) -> str:
    """Run a recipe in this process; returns the archive's URL."""
    return run_here(recipe).url


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "layer.0.weight": random.standard_normal((300, 257)).astype(np.float32),
        "layer.0.bias": random.standard_normal(257).astype(np.float32),
        "half": random.standard_normal((64, 64)).astype(np.float16),
        "positions": np.arange(512, dtype=np.int64).reshape(1, 512),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_file(tensors, folder / "model.safetensors")
    sets = [f"source.path={folder / 'model.safetensors'}", f"sink.path={folder / 'root'}", "name=tiny",
            "sink.name=tiny", "operators.1.side=64", "compute.planes_per_unit=8", "operators.4.coder=rans"]  # fmt: skip
    return archived(load("quickstart-model", sets))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(11).standard_normal((600, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> str:
    folder = tmp_path_factory.mktemp("collection")
    np.save(folder / "vectors.npy", vectors)
    sets = [f"source.path={folder / 'vectors.npy'}", f"sink.path={folder / 'root'}", "compute.rows_per_unit=256",
            "operators.2.coder=rans"]  # fmt: skip
    return archived(load("vectors", sets))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.call(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_command_of_the_design_is_there_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(cli.COMMANDS) >= COMMANDS
    for command in cli.COMMANDS:
        code, out, _ = call(capsys, command, "--help")
        assert code == 0 and f"hilbertflow {command}" in out


def test_starting_up_imports_nothing_heavy() -> None:
    heavy = "{'ray', 'torch', 'faiss', 'numba', 'pyarrow', 'zarr', 'av', 'pandas', 'transformers', 'numpy'}"
    code = f"import sys, pipelines.cli\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out.startswith("hilbertflow ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'; see hilbertflow --help"),
        (["run", "x.yaml", "--nope"], "No such option: --nope; see hilbertflow run --help"),
        (["search", "x", "--tier", "warp", "--text", "t"], "hilbertflow search --help"),
        (["search", "x"], "give one of --text, --image, --vector and --id; see hilbertflow search --help"),
        (["search", "x", "--text", "a", "--id", "b"], "give one of --text, --image, --vector and --id"),
        (["search", "x", "--text", "a", "-k", "0"], "hilbertflow search --help"),
        (["restore", "x", "y.npy", "--level", "best"], "'best' is no level; write a number from 0, or exact"),
        (["bench", "nonsense"], "'nonsense' is none of weights"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and expected in err


def test_every_benchmark_that_help_names_is_there() -> None:
    assert set(BENCHES.replace("or all", "").strip(", ").split(", ")) == set(MODULES)
    for module in MODULES.values():
        assert importlib.util.find_spec(module) is not None


def test_bad_input_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (
        ["run", str(tmp_path / "nope.yaml")],
        ["info", str(tmp_path)],
        ["verify", str(tmp_path / "nope")],
        ["search", str(tmp_path), "--text", "x"],
        ["rm", str(tmp_path), "--yes"],
        ["submit", str(tmp_path / "nope.yaml"), "--address", "http://127.0.0.1:1"],
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 1 and out == "" and err.count("\n") == 1, arguments
        assert str(tmp_path) in err


def test_submit_says_when_no_job_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "submit", "vectors", "--address", "http://127.0.0.1:1")
    assert code == 1 and out == "" and "http://127.0.0.1:1: the job server does not answer" in err


def test_unexpected_errors_are_one_line_that_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(url: str) -> None:
        raise KeyError("first\nsecond")

    monkeypatch.setattr(catalog, "ls", broken)
    code, _, err = call(capsys, "ls", "x")
    assert code == 1 and err.count("\n") == 1 and "KeyError at test_cli.py:" in err and "HILBERTFLOW_DEBUG=1" in err
    monkeypatch.setenv("HILBERTFLOW_DEBUG", "1")
    assert "Traceback" in call(capsys, "ls", "x")[2]


def test_an_error_that_another_process_raised_is_still_our_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RayTaskError

    cause = HilbertflowError("holds NaN", where="rows.npy", remedy="leave them out")

    def remote(url: str) -> None:
        raise RayTaskError("work", "long\ntraceback", cause).as_instanceof_cause()

    monkeypatch.setattr(catalog, "ls", remote)
    code, _, err = call(capsys, "ls", "x")
    assert (code, err) == (1, "rows.npy: holds NaN; leave them out\n")


def test_interruption_is_exit_code_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "ls", interrupted)
    assert call(capsys, "ls", "x") == (130, "", "interrupted\n")
    monkeypatch.setattr("storage.fs.Location.exists", interrupted)
    said = "interrupted; the same command goes on where it stopped\n"
    assert call(capsys, "cp", "x", "y") == (130, "", said)


def test_ls_and_info_tell_bytes_by_level(
    capsys: pytest.CaptureFixture[str], model: str, tensors: dict[str, np.ndarray]
) -> None:
    root = str(Path(model).parents[1])
    (row,) = data(capsys, "ls", root)
    assert row["path"] == "models/tiny"
    told = data(capsys, "info", root)  # a root that holds just one
    assert told == data(capsys, "info", model)
    listed = data(capsys, "info", model, "--tensors")["tensor_list"]
    assert {row["name"]: tuple(row["shape"]) for row in listed} == {name: v.shape for name, v in tensors.items()}
    assert told["levels"] == row["levels"] and {"level0", "level1", "exact"} <= set(told["levels"])
    assert told["tensors"] == len(tensors)
    assert told["parameters"] == sum(value.size for value in tensors.values())
    assert told["quality"]["sqnr_db_level0"] < told["quality"]["sqnr_db_level1"]
    files = {path.relative_to(model): path.stat().st_size for path in Path(model).rglob("*") if path.is_file()}
    for name, count in told["levels"].items():
        if name != "tables":
            assert sum(n for path, n in files.items() if path.parts[0] == name and path.name != "zarr.json") == count
    listing = files[Path("manifest.json")] + files[Path("objects.parquet")]
    assert told["archive_bytes"] == sum(told["levels"].values()) == sum(files.values()) - listing
    code, out, error = call(capsys, "info", model, "--recall")
    assert code == 1 and "a model is not searched" in error
    code, out, _ = call(capsys, "info", model)
    assert code == 0 and "level0" in out and "SQNR" in out
    assert "models/tiny" in call(capsys, "ls", root)[1]


def test_stock_zarr_opens_an_archive_where_hilbertflow_is_installed(model: str, tmp_path: Path) -> None:
    code = f"import zarr; print(zarr.open_group({model!r}, mode='r')['level0'][0].any())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "True", done.stderr


def test_restore_exact_is_the_source_and_level_0_is_near(
    capsys: pytest.CaptureFixture[str], model: str, tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "exact.safetensors"
    assert call(capsys, "restore", model, str(out))[0] == 0
    restored = load_file(out)
    assert restored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert restored[name].dtype == value.dtype and restored[name].tobytes() == value.tobytes()
    errors = []
    for level in ("0", "1"):
        near = tmp_path / f"{level}.npy"
        arguments = ("restore", model, str(near), "--level", level, "--tensor", "layer.0.weight")
        assert call(capsys, *arguments)[0] == 0
        errors.append(float(np.square(np.load(near) - tensors["layer.0.weight"]).mean()))
    assert 0 < errors[1] < errors[0] < 0.05
    code, _, err = call(capsys, "restore", model, str(tmp_path / "x.safetensors"), "--level", "9")
    assert code == 1 and "no level 9" in err and not (tmp_path / "x.safetensors").exists()


def test_export_writes_a_picture(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    for name, magic in (("a.png", b"\x89PNG"), ("a.mp4", b"ftyp")):
        code, out, _ = call(capsys, "export", model, "layer.0.weight", str(tmp_path / name), "--level", "0")
        assert code == 0 and "picture" in out
        assert magic in (tmp_path / name).read_bytes()[:16]
    code, _, err = call(capsys, "export", model, "layer.0.weigth", str(tmp_path / "b.png"))
    assert code == 1 and "did you mean 'layer.0.weight'" in err
    assert call(capsys, "export", model, "half", str(tmp_path / "b.gif"))[0] == 1


def test_verify_names_the_object_with_a_flipped_bit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    sets = [f"source.path={tmp_path / 'model.safetensors'}", f"sink.path={tmp_path / 'root'}", "operators.4.coder=raw"]
    url = archived(load("quickstart-model", sets))
    told = data(capsys, "verify", url)
    assert told["sound"] and told["objects"] > 4
    victim = next(path for path in sorted((Path(url) / "exact").rglob("*")) if path.is_file() and "c" in path.parts)
    spoilt = bytearray(victim.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    victim.write_bytes(spoilt)
    code, _, err = call(capsys, "verify", url)
    assert code == 1 and err.count("\n") == 1 and str(victim.relative_to(url)) in err


def test_rm_removes_one_archive_and_asks_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    root = tmp_path / "root"
    sets = [f"source.path={tmp_path / 'model.safetensors'}", f"sink.path={root}", "operators.4.coder=raw"]
    first, second = (archived(load("quickstart-model", [*sets, f"sink.name={name}"])) for name in ("a", "b"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = call(capsys, "rm", first)
    assert code == 1 and "nobody answered; --yes" in err and Path(first).exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert call(capsys, "models", "rm", str(root), "a")[0] == 1 and Path(first).exists()
    assert call(capsys, "rm", first, "--yes")[0] == 0
    assert not Path(first).exists() and [row["name"] for row in data(capsys, "ls", str(root))] == ["b"]
    assert Path(second).exists()


def test_dry_run_prints_the_graph_and_estimates_bytes_near_the_truth(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file({"layer.0.weight": tensors["layer.0.weight"]}, tmp_path / "model.safetensors")
    sets = [f"source.path={tmp_path / 'model.safetensors'}", f"sink.path={tmp_path / 'root'}", "operators.1.side=64"]
    arguments = ["run", "quickstart-model", "--dry-run"] + [part for item in sets for part in ("--set", item)]
    told = data(capsys, *arguments)
    assert told["units"] >= 1 and told["graph"][0] == "read" and "frame_encode" in " ".join(told["graph"])
    assert not (tmp_path / "root").exists()
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and "frame_encode" in out and "units" in out
    url = archived(load("quickstart-model", sets))
    written = data(capsys, "info", url)["levels"]
    assert told["estimated_bytes"].keys() <= written.keys()
    real = sum(written[name] for name in told["estimated_bytes"])
    assert 0.8 < told["estimated_total"] / real < 1.25


def test_search_with_vectors_finds_what_a_scan_finds(
    capsys: pytest.CaptureFixture[str], collection: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    queries = vectors[[3, 500]] + np.float32(0.01)
    np.save(tmp_path / "q.npy", queries)
    told = data(capsys, "search", collection, "--vector", str(tmp_path / "q.npy"), "-k", "5", "--tier", "exact")
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    assert [len(entry["ids"]) for entry in told["results"]] == [5, 5]
    for entry, rows, query in zip(told["results"], truth, queries, strict=True):
        assert [int(name) for name in entry["ids"]] == rows.tolist()
        np.testing.assert_allclose(entry["scores"], vectors[rows] @ query, rtol=1e-5)
        assert entry["partial"] is False
    np.save(tmp_path / "one.npy", queries[0])
    (single,) = data(
        capsys, "search", str(Path(collection).parents[1]), "--vector", str(tmp_path / "one.npy"), "-k", "5",
        "--tier", "exact",
    )["results"]  # fmt: skip
    assert single["ids"] == told["results"][0]["ids"]
    code, out, _ = call(capsys, "search", collection, "--vector", str(tmp_path / "one.npy"), "--tier", "exact")
    assert code == 0 and "rank" in out and "score" in out


def test_search_by_row_leaves_the_row_out(
    capsys: pytest.CaptureFixture[str], collection: str, vectors: np.ndarray
) -> None:
    (entry,) = data(capsys, "search", collection, "--id", "17", "-k", "4", "--tier", "exact")["results"]
    truth = [row for row in np.argsort(-(vectors @ vectors[17])).tolist() if row != 17][:4]
    assert [int(name) for name in entry["ids"]] == truth
    code, _, err = call(capsys, "search", collection, "--id", "no such row", "--tier", "exact")
    assert code == 1 and "no such row" in err


def test_bad_queries_are_refused(
    capsys: pytest.CaptureFixture[str], collection: str, model: str, tmp_path: Path
) -> None:
    cases = {
        "wide.npy": (np.zeros((1, 7), np.float32), "vectors have 7 values, the collection's have 24"),
        "nan.npy": (np.full(24, np.nan, np.float32), "holds NaN or infinity"),
        "cube.npy": (np.zeros((2, 2, 24), np.float32), "is no vector"),
        "text.npy": (np.array(["a"] * 24), "is no vector"),
    }
    for name, (array, expected) in cases.items():
        np.save(tmp_path / name, array)
        code, _, err = call(capsys, "search", collection, "--vector", str(tmp_path / name))
        assert code == 1 and expected in err and name in err
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "noise.npy").write_bytes(b"\x00" * 64)
    for name in ("pickle.npy", "noise.npy", "missing.npy"):
        code, _, err = call(capsys, "search", collection, "--vector", str(tmp_path / name))
        assert code == 1 and err.count("\n") == 1 and name in err
    code, _, err = call(capsys, "search", model, "--id", "x")
    assert code == 1 and "is a model, not a collection" in err
    code, _, err = call(capsys, "search", collection, "--text", "x")
    assert code == 1 and "no model embeds queries" in err
    code, _, err = call(capsys, "search", collection, "--image", "x.png")
    assert code == 1 and "x.png: does not exist" in err


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "schema")
    assert code == 0 and json.loads(out)["title"] == "Recipe"


def test_cells_show_data_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("id",), [("[red]x[/red]\x1b[2J",)])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and "\x1b" not in out
    console.print_json({"a": float("nan"), "b": np.float32(1.5), "c": [np.int64(3)]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 1.5, "c": [3]}
    assert [console.size(count) for count in (0, 999, 1000, 90_868_376)] == ["0 B", "999 B", "1 kB", "90.9 MB"]


def test_what_a_sample_keeps_of_each_kind_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tensors = {
        "layers.0.mlp.up_proj.weight": np.zeros((300, 100), np.float32),
        "layers.0.self_attn.q_proj.weight": np.zeros((100, 100), np.float32),
        "embed_tokens.weight": np.zeros((600, 100), np.float32),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    sets = [f"source.path={tmp_path}/m.safetensors", f"sink.path={tmp_path}", "operators.0.max_params=20000"]
    arguments = ["run", "quickstart-model", "--dry-run"] + [part for item in sets for part in ("--set", item)]
    said = data(capsys, *arguments)["sampled"]
    assert said == {"attention": {"kept": 2000, "of": 10000}, "embedding": {"kept": 12000, "of": 60000},
                    "mlp": {"kept": 6000, "of": 30000}}  # fmt: skip
    assert "20.0 %" in call(capsys, *arguments)[1]
