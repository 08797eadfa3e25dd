"""Signatures: in the stream and from the file alike, small, and what they say of relatives and of strangers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.model_index import ModelIndex
from cluster.model_root import ModelRoot
from operators.errors import HilbertflowError
from operators.relation import code_score, relate
from operators.signature import CODE, LARGEST, Collector, Signature
from operators.sketch import Matrix, sums
from pipelines.bench import zoo_derive as derive
from pipelines.bench.local import archive_model
from pipelines.bench.zoo_places import transformer
from storage import catalog, signatures
from storage.checkpoint import open_checkpoint
from storage.fs import Location
from storage.model import ModelArchive

State = dict[str, np.ndarray]
LAYERS, WIDTH, HIDDEN = 3, 64, 160


def state(seed: int) -> State:
    random, out = np.random.default_rng(seed), {}
    out["embed_tokens.weight"] = random.standard_normal((400, WIDTH)) / 8
    out["embed_positions.weight"] = random.standard_normal((48, WIDTH)) / 8
    for i in range(LAYERS):
        for name in "qkvo":
            out[f"layers.{i}.{name}_proj.weight"] = random.standard_normal((WIDTH, WIDTH)) / 8
        out[f"layers.{i}.up_proj.weight"] = random.standard_normal((HIDDEN, WIDTH)) / 8
        out[f"layers.{i}.down_proj.weight"] = random.standard_normal((WIDTH, HIDDEN)) / 12
        for name, length in (("q_proj", WIDTH), ("k_proj", WIDTH), ("v_proj", WIDTH), ("o_proj", WIDTH),
                             ("up_proj", HIDDEN), ("down_proj", WIDTH)):  # fmt: skip
            out[f"layers.{i}.{name}.bias"] = random.standard_normal(length) / 50
        for name in ("attn_norm", "mlp_norm"):
            out |= {f"layers.{i}.{name}.weight": np.ones(WIDTH), f"layers.{i}.{name}.bias": np.zeros(WIDTH)}
    out |= {"norm.weight": np.ones(WIDTH), "norm.bias": np.zeros(WIDTH)}
    out["lm_head.weight"] = random.standard_normal((400, WIDTH)) / 8
    return {name: value.astype(np.float32) for name, value in out.items()}


def signature(root: Path, values: State) -> Signature:
    save_file(values, root / "model.safetensors")
    return signatures.of_checkpoint(open_checkpoint(str(root / "model.safetensors")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three archived models: one, the same with noise, a stranger."""
    root = tmp_path_factory.mktemp("models")
    for name, values in (("one", state(1)), ("near", derive.noised(state(1), 0.2)), ("other", state(2))):
        (root / name).mkdir()
        save_file(values, root / name / "model.safetensors")
        archive_model(str(root / name), root / "archives", f"name={name}", f"sink.name={name}",
                      "operators.4.coder=rans", "operators.1.layout=raster", "operators.1.side=64",
                      "operators.2.method=uniform", "compute.planes_per_unit=3")  # fmt: skip
    return root


CHANGES = {
    "noised": lambda s: derive.noised(s, 0.3), "pruned": lambda s: derive.pruned(s, 0.5), "int8": derive.int8,
    "nf4": derive.nf4, "q4_0": derive.q4_0,
    "short": lambda s: derive.without_layers(s, r"layers\.(\d+)\.", [1]),
    "permuted": lambda s: transformer(LAYERS, WIDTH, 4, HIDDEN).permuted(s, 1),
    "residual stream permuted": lambda s: transformer(LAYERS, WIDTH, 4, HIDDEN).permuted(s, 2, residual=True),
    "rescaled": lambda s: transformer(LAYERS, WIDTH, 4, HIDDEN).rescaled(s, 3),
    "merged": lambda s: derive.mean_of((s, derive.noised(s, 0.5))),
}  # fmt: skip


@pytest.mark.parametrize("how", CHANGES)
def test_relatives_score_high_and_strangers_low(tmp_path: Path, how: str) -> None:
    own, other = signature(tmp_path, state(1)), signature(tmp_path, CHANGES[how](state(1)))
    stranger = signature(tmp_path, state(2))
    assert relate(own, other).score > 0.7
    assert relate(own, stranger).score < 0.15 and relate(other, stranger).score < 0.15
    codes = np.stack([other.code, stranger.code])
    close, far = code_score(own.code, codes)
    assert close > far + 0.3


def test_of_a_long_table_the_first_tokens_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pieces it comes in; strangers stay strangers."""
    monkeypatch.setattr(signatures, "TABLE", 100)
    own, other = signature(tmp_path, state(1)), signature(tmp_path, state(2))
    (pair,) = [pair for pair in relate(own, other).pairs if pair.first.role == "tokens"]
    assert abs(pair.score) < 0.25
    near = relate(own, signature(tmp_path, derive.noised(state(1), 0.1)))
    (pair,) = [pair for pair in near.pairs if pair.first.role == "tokens"]
    assert pair.score > 0.95 and pair.change == pytest.approx(0.1, rel=0.4)


def test_layers_are_aligned(tmp_path: Path) -> None:
    own = signature(tmp_path, state(1))
    found = relate(own, signature(tmp_path, CHANGES["short"](state(1))))
    assert found.layers == 2
    assert {(p.first.layer, p.second.layer) for p in found.pairs if p.first.layer >= 0} == {(0, 0), (2, 1)}


def test_the_distance_is_that_of_the_weights(tmp_path: Path) -> None:
    a, b = state(1), derive.noised(state(1), 0.02)
    square = sum(float(np.square(a[n] - b[n]).sum()) for n in a if a[n].ndim > 1)
    whole = sum(float(np.square(a[n]).sum()) for n in a if a[n].ndim > 1)
    told = relate(signature(tmp_path, a), signature(tmp_path, b)).distance
    assert told == pytest.approx((square / whole) ** 0.5, rel=0.1)


def test_in_the_stream_it_is_what_the_file_says(root: Path) -> None:
    """Units of three planes cut tensors and rows anywhere; nothing is left behind."""
    place = Location(str(root / "archives")).join("models", "one")
    kept = signatures.load(place.read(signatures.KEY))
    assert kept is not None
    whole = signatures.of_checkpoint(open_checkpoint(str(root / "one")))
    assert relate(kept, whole).score > 0.9999 and relate(kept, whole).distance < 1e-5
    assert kept.parameters == whole.parameters == sum(v.size for v in state(1).values())
    assert not place.exists("scratch")
    assert place.size(signatures.KEY) <= LARGEST


def test_an_archive_without_one_has_it_computed(root: Path) -> None:
    models = ModelRoot(str(root / "archives"))
    handle = models.handle("one")
    kept, heads = signatures.of_archive(handle), dict(handle.manifest.heads)
    del heads[signatures.KEY]
    older = ModelArchive(handle.place, dataclasses.replace(handle.manifest, heads=heads))
    assert relate(kept, signatures.of_archive(older)).score > 0.9999


def test_one_of_other_probes_is_computed_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = ModelRoot(str(root / "archives")).handle("one")
    today = signatures.of_archive(handle)
    monkeypatch.setattr(signatures, "VERSION", "3")
    assert signatures.kept(handle) is None
    assert relate(today, signatures.of_archive(handle)).score > 0.9999


def test_the_catalog_finds_relatives_and_is_made_again_from_the_archives(root: Path) -> None:
    url = str(root / "archives")
    before = catalog.ls(url)
    Location(url).delete("catalog", recursive=True)
    assert catalog.ls(url) == before
    models = ModelRoot(url)
    near, other = models.nearest("one", 10)
    assert (near.name, other.name) == ("near", "other") and near.score > 0.9 > 0.15 > other.score
    assert near.layers == LAYERS and near.distance == pytest.approx(0.2, rel=0.3)
    with pytest.raises(HilbertflowError, match="did you mean 'other'"):
        models.nearest("othr", 1)


def test_damage_is_told() -> None:
    with pytest.raises(HilbertflowError, match="is no signature"):
        signatures.load(b"PAR1 something else", "here")


def test_an_index_grows_without_being_built_again() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(-127, 128, (3000, CODE)).astype(np.int8)
    index = ModelIndex()
    for start in range(0, 3000, 100):
        index.add([str(i) for i in range(start, start + 100)], codes[start : start + 100])
    near = np.clip(codes[1234] + random.integers(-60, 60, CODE), -127, 127).astype(np.int8)
    (first, score), second = index.search(near, 2)
    assert len(index) == 3000 and first == "1234" and score > 0.8 > 0.3 > second[1]
    assert ModelIndex().search(near, 3) == []


def test_very_deep_models_fit_too() -> None:
    from operators.sketch import Matrix, sums

    collector, random = Collector(), np.random.default_rng(2)
    for layer in range(500):
        for name in ("q_proj", "up_proj", "down_proj"):
            values = random.standard_normal((16, 16)).astype(np.float32)
            collector.add(f"model.layers.{layer}.{name}.weight", "mlp", sums(Matrix(16, 16), values, 0, None))
    made = collector.finish()
    assert len(signatures.dump(made)) <= LARGEST
    assert {0, 499} <= set(made.layers)


def test_a_collector_lets_go_of_the_sums_of_a_tensor_that_is_whole() -> None:
    collector, matrix = Collector(), Matrix(64, 96)
    values = np.random.default_rng(1).normal(size=64 * 96).astype(np.float32)
    for number in range(5):
        for low in range(0, values.size, 1000):
            collector.add(f"t{number}", "mlp", sums(matrix, values[low : low + 1000], low, None))
    assert not collector._found and len(collector.finish().tensors) == 5
