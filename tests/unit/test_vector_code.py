"""Checkpoints by a vector codebook: every prefix of the tree's layers decodes, the last gives the source's bytes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from operators import scales
from operators.errors import HilbertflowError
from operators.vector_code import VectorQuantize, in_place, sorted_layers
from operators.vector_training import training_runs
from pipelines.bench.local import archive_with
from pipelines.cli import call
from pipelines.compile import make_plan, prepare
from pipelines.export import export
from pipelines.pending import Pending
from pipelines.recipe import parse
from pipelines.repair import repair
from pipelines.run import here, run_here
from pipelines.tune import sample
from storage import archive
from storage.fs import Location
from storage.model import ModelArchive
from storage.planes import PlaneUnits
from storage.spec import claim, open_for_writing

RECIPE = """
name: vectors
source: {{kind: checkpoint, path: "{source}"}}
operators:
  - {{kind: hilbert_map, side: 64}}
  - {{kind: vq, dim: {dim}, codes: {codes}}}
  - {{kind: tree, widths: {widths}}}
  - {{kind: frame_encode}}
sink: {{kind: archive, path: "{root}", name: {name}}}
compute: {{planes_per_unit: 4}}
"""


def recipe(source: str, root: str, dim: int = 4, codes: int = 256, widths: str = "[4, 2, 2]", name: str = "vq") -> Any:
    return parse(RECIPE.format(source=source, root=root, dim=dim, codes=codes, widths=widths, name=name))


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    odd = rng.normal(size=(100, 100)).astype(np.float32)
    odd.reshape(-1)[:6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]
    odd[50:] = 0
    return {
        "a.weight": (rng.normal(size=(300, 128)) * 0.05).astype(np.float32),
        "b.weight": (rng.normal(size=(200, 90)) * rng.lognormal(size=(200, 1))).astype(ml_dtypes.bfloat16),
        "c.weight": odd,
        "d.bias": rng.normal(size=50).astype(np.float16),
        "e.ids": np.arange(7, dtype=np.int64),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tensors: Any) -> ModelArchive:
    root = tmp_path_factory.mktemp("vq")
    save_file(tensors, root / "m.safetensors")
    return archive_with(recipe(str(root / "m.safetensors"), str(root / "out")))


def test_the_source_comes_back_and_every_prefix_decodes(model: ModelArchive, tensors: Any) -> None:
    handle = archive.open(model.url)
    assert handle.levels == (0, 1, 2, 3, "exact")
    for name, value in tensors.items():
        assert handle[name].read("exact").tobytes() == value.tobytes(), name
    value, errors = tensors["a.weight"], []
    for level in range(4):
        got = handle["a.weight"].read(level)
        errors.append(float(np.square(got - value).sum() / np.square(value).sum()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert 0.05 < errors[2] < 0.3 and errors[3] < 1e-4
    said = handle.manifest.quality
    assert said["sqnr_db_level0"] < said["sqnr_db_level1"] < said["sqnr_db_level2"] < said["sqnr_db_level3"]


def test_the_last_layer_is_the_flat_code_and_costs_no_more(model: ModelArchive) -> None:
    ladder = archive.open(model.url).ladder
    tree = ladder.tree
    codes = np.random.default_rng(1).integers(0, tree.size, (64, 16))
    stored = sorted_layers(tree, tree.encode(codes))
    assert (tree.codes(in_place(tree, stored)) == codes).all()
    handle = archive.open(model.url)
    runs = sum(group.planes for group in handle.layout.groups if not group.opaque) * 64 * 64 // 4
    packed = sum(model.manifest.levels[f"level{k}"] for k in range(3))
    assert packed <= 1.10 * runs  # 8 bits a run, flat
    assert sum(model.manifest.levels.values()) < 1.1 * model.manifest.source_bytes


def test_the_same_source_gives_the_same_bytes(model: ModelArchive, tmp_path: Path, tensors: Any) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    again = archive_with(recipe(str(tmp_path / "m.safetensors"), str(tmp_path / "out")))
    assert {key: again.place.read(key) for key in again.place.list() if "/c/" in key} == {
        key: model.place.read(key) for key in model.place.list() if "/c/" in key
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dim": 3}, "power of two"), ({"codes": 1}, "2 to 65536"), ({"widths": "[0]"}, "1 to 16 bits"),
        ({"widths": "leaves"}, "widths"), ({"codes": 65536}, "fewer codes"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(model: ModelArchive, tmp_path: Path, tensors: Any, change: Any, what: str) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(HilbertflowError, match=what):
        make_plan(recipe(str(tmp_path / "m.safetensors"), str(tmp_path), **change))


def own(source: Path, root: Path, book: Path | str, *, name: str = "own", options: str = "") -> Any:
    """A recipe with a codebook of one's own, at ``root``."""
    text = RECIPE.format(source=source, root=root, dim=0, codes=0, widths="[3, 2]", name=name)
    return parse(text.replace("dim: 0, codes: 0", f'codebook: "{book}"{options}'))


@pytest.fixture
def book(tmp_path: Path, tensors: Any) -> Path:
    """37 points of 4 values in a file, some of them equal; and the checkpoint beside them."""
    save_file(tensors, tmp_path / "m.safetensors")
    points = np.random.default_rng(7).normal(size=(37, 4)).astype(np.float32)
    points[30:] = points[3]
    np.save(tmp_path / "book.npy", points)
    return tmp_path / "book.npy"


def test_the_last_layer_is_the_flat_quantizer_of_ones_own_codebook(book: Path, tensors: Any) -> None:
    points = np.load(book)
    handle = archive.open(archive_with(own(book.with_name("m.safetensors"), book.parent, book)).url)
    assert [len(cells) for cells in handle.ladder.tree.points] == [8, 32, 37]
    for name in ("a.weight", "b.weight", "c.weight"):
        value = tensors[name]
        assert handle[name].read("exact").tobytes() == value.tobytes(), name
    got = handle["a.weight"].read(2).reshape(-1)
    for plane in range(9):  # whole ones, of 64 rows that are scaled each to its own deviation
        part = slice(plane * 4096, plane * 4096 + 4096)
        values = tensors["a.weight"].reshape(-1)[part].reshape(64, 64)
        scale = scales.scale_of(scales.encode(values.view(np.uint32), "F32"))[:, None]
        runs = (values / scale).reshape(-1, 1, 4)
        nearest = np.square(runs - points).sum(axis=2).argmin(axis=1)
        wanted = points[nearest].reshape(64, 64) * scale.astype(np.float32)
        assert got[part].tobytes() == wanted.tobytes()


def test_a_codebook_is_known_by_its_content(book: Path) -> None:
    source, root = book.with_name("m.safetensors"), book.parent
    first = archive_with(own(source, root, book))
    before = first.place.read("manifest.json")
    points = np.load(book)
    np.save(moved := book.with_name("same.npy"), np.asfortranarray(points.astype(np.float64)))
    assert run_here(own(source, root, moved)).written == 0  # the same points elsewhere, in another dtype and order
    points[5, 2] += 1
    np.save(book, points)
    for said in (own(source, root, book), recipe(str(source), str(root), 4, 37, "[3, 2]", "own")):
        with pytest.raises(HilbertflowError, match="another source or recipe has this name"):
            run_here(said)
    assert first.place.read("manifest.json") == before
    # A run that was stopped goes on, but not with other points.
    half = make_plan(own(source, root, book, name="half"))
    claim(half.spec)
    open_for_writing(half.spec)
    here(half.last, Pending.missing(half.spec.units, {0}))
    np.save(moved, points[::-1])
    with pytest.raises(HilbertflowError, match="another source or recipe has this name"):
        run_here(own(source, root, moved, name="half"))
    done = run_here(own(source, root, book, name="half"))
    assert (done.written, done.skipped) == (1, half.spec.units - 1)
    assert (
        archive.open(done.url)["a.weight"].read("exact").tobytes()
        == archive.open(first.url)["a.weight"].read("exact").tobytes()
    )


def test_a_run_that_goes_on_takes_up_the_tree_that_was_begun_with(book: Path) -> None:
    """As where another machine trained it, whose sums come out otherwise: here of quite other points."""
    source, root = book.with_name("m.safetensors"), book.parent
    said = recipe(str(source), str(root), 4, 37, "[3, 2]")
    plan = make_plan(said)
    claim(plan.spec)
    begun = prepare(make_plan(own(source, root / "other", book)), lambda _: None)
    key = "journal/tree-{}.npz".format
    theirs = Location(begun.spec.url).read(key(begun.spec.identity[:12]))
    Location(plan.spec.url).write_atomic(key(plan.spec.identity[:12]), theirs)
    with pytest.raises(HilbertflowError, match="another run has begun with another codebook; run the recipe again"):
        prepare(plan, lambda _: None)
    done = archive_with(said)
    points = np.load(book)
    assert done.ladder.tree.points[-1].tobytes() == points[done.ladder.tree.leaf].tobytes()
    assert done["a.weight"].read("exact").tobytes() == load_file(source)["a.weight"].tobytes()
    assert not [key for key in done.place.list() if key.startswith("journal/")]
    assert make_plan(said).codebook["layers"] == [8, 32, 37]  # of the archive, once it is finished
    Location(plan.spec.url).write_atomic(key(plan.spec.identity[:12]), theirs[:-9])
    with pytest.raises(HilbertflowError, match=r"tree-.*npz: is damaged: .*hilbertflow rm .*then run"):
        make_plan(said)


def test_repair_needs_no_codebook_but_the_archives_own(book: Path) -> None:
    source = book.with_name("m.safetensors")
    made = archive_with(own(source, book.parent, book))
    before = {key: made.place.read(key) for key in made.place.list()}
    book.unlink()
    broken = [next(key for key in before if key.startswith(f"{level}/c/")) for level in ("level0", "exact")]
    for key in broken:
        made.place.write_atomic(key, before[key][:-1])
    assert set(repair(made.place, "", here).objects) == set(broken)
    assert {key: made.place.read(key) for key in made.place.list()} == before
    made.place.delete("code/tree_leaf/c/0")
    with pytest.raises(HilbertflowError, match=r"book\.npy: does not exist"):
        repair(made.place, "", here)


def _npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "options", "what"),
    [
        (_npy(np.zeros((37, 4))), ", codes: 256", r"has 37 points of 4 values, the recipe says codes: 256; leave that"),
        (_npy(np.zeros((37, 4))), ", codes: 37, dim: 8", r"the recipe says dim: 8; leave"),
        (_npy(np.zeros((37, 3))), "", r"has 37 points of 3 values; save 2 to 65,536 points, one a row, of 1, 2, 4"),
        (_npy(np.zeros((1, 4))), "", r"has 1 points of 4 values; save 2 to 65,536"),
        (_npy(np.zeros((65_537, 1), np.int8)), "", r"has 65,537 points of 1 values; save"),
        (_npy(np.zeros((37, 4))[:, 0]), "", r"has shape \(37,\), two dimensions are needed"),
        (_npy(np.full((3, 4), np.nan)), "", r"row 0, byte 128: the vector holds nan; remove or repair"),
        (_npy(np.full((3, 4), 1e300)), "", r"row 0, byte 128: the vector holds inf; remove or repair"),
        (_npy(np.zeros((37, 4), np.complex64)), "", r"holds complex64, not real numbers; save it as"),
        (_npy(np.array([[{}] * 4] * 9, object)), "", r"holds Python objects, which only a pickle could restore"),
        (_npy(np.zeros((37, 4)))[:-1], "", r"1,183 are there; it is truncated"),
        (b"k-means", "", r"is not a NumPy array"),
    ],
)  # fmt: skip
def test_what_is_no_codebook(book: Path, content: bytes, options: str, what: str) -> None:
    book.write_bytes(content)
    with pytest.raises(HilbertflowError, match=rf"^{re.escape(str(book))}: .*{what}") as caught:
        make_plan(own(book.with_name("m.safetensors"), book.parent, book, options=options))
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_a_codebook_behind_a_url_and_what_a_dry_run_tells(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Location("memory://books/b.npy").write_atomic("", book.read_bytes())
    text = RECIPE.format(source=book.with_name("m.safetensors"), root=book.parent, dim=0, codes=0, widths=3, name="dry")
    file = book.with_name("recipe.yaml")
    file.write_text(text.replace("dim: 0, codes: 0", "codebook: memory://books/b.npy, codes: 37"))
    call(["run", str(file), "--dry-run"])
    assert re.search(
        r"codebook: 37 points of 4 values, of memory://books/b.npy \(SHA-256 [0-9a-f]{12}…\), in layers of 8, 37; "
        r"\d\.\d dB signal to noise on sampled planes\n", capsys.readouterr().out,
    )  # fmt: skip
    call(["run", str(file), "--dry-run", "--json", "--set", "operators.1.codebook=", "--set", "operators.1.codes=16"])
    told = json.loads(capsys.readouterr().out)["codebook"]
    assert (told["path"], told["sha256"], told["codes"], told["dim"], told["layers"]) == (None, None, 16, 8, [8, 16])
    assert not (book.parent / "models").exists()


def test_the_tree_as_a_picture(model: ModelArchive, tmp_path: Path) -> None:
    assert export(model.url, "codebook", str(tmp_path / "tree.svg")) == 1
    drawn = ElementTree.parse(tmp_path / "tree.svg").getroot()
    boxes = [item for item in drawn if item.tag.endswith("rect")]
    assert len(boxes) == 1 + 16 + 64 + 256
    with pytest.raises(HilbertflowError, match="only the codebook"):
        export(model.url, "a.weight", str(tmp_path / "tree.svg"))


def test_a_large_codebook_is_trained_on_more_planes() -> None:
    class Planes(PlaneUnits):
        units, unit_bytes = 20, 0

        def __init__(self) -> None:
            pass

        def read_some(self, unit: int, count: int) -> pa.Table:
            return pa.table({"plane": pa.array([16 * unit + 16 * i // count for i in range(count)], pa.int64())})

    few, many = sample(Planes()), sample(Planes(), -(-training_runs(VectorQuantize(codes=65_536)) * 8 // 256**2))
    assert few.num_rows == 12 and 64 <= many.num_rows < 80
    units = {plane // 16 for plane in many.column("plane").to_pylist()}
    assert len(units) == 9 and min(units) < 3 and max(units) > 16
