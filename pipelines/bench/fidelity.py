"""What a level does to the model: sentence embeddings of the checkpoint rebuilt from it against the original's."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from operators.encode import TextEncoder
from operators.floats import to_float32
from pipelines.bench.block_formats import FORMATS, Decoded
from pipelines.bench.datasets import SEED, read_glosses, wordnet
from pipelines.bench.local import archive_model
from pipelines.bench.material import MODEL
from pipelines.bench.report import Chart, Table
from pipelines.restore import restore
from storage.checkpoint import open_checkpoint
from storage.model import ModelArchive
from storage.references import local_url

F32 = npt.NDArray[np.float32]
BASES = (10.0, 15.0, 24.3, 20.0)
NEIGHBOURS = 10
_QUOTED = re.compile(r'"([^"]+)"')
_WORDS = 5


@dataclass(frozen=True)
class Effect:
    """A rebuilt model: bits a parameter that it was read from, and its embeddings against the original's."""

    name: str
    bits: float
    mean_cosine: float
    low_cosine: float
    overlap: float

    @property
    def row(self) -> tuple[str, ...]:
        """As printed."""
        return self.name, f"{self.bits:.2f}", f"{self.mean_cosine:.5f}", f"{self.low_cosine:.5f}", f"{self.overlap:.3f}"


def fidelity(quick: bool) -> Table:
    """MiniLM at base levels of several fidelities, every level of the last, and as NF4 and Q8_0."""
    texts = sentences(300 if quick else 2000)
    with tempfile.TemporaryDirectory() as folder:
        effects = list(_effects(Path(folder), texts, BASES[-1:] if quick else BASES))
    return Table(
        f"what it does to the model: MiniLM (float32) on {len(texts):,} sentences",
        ("rebuilt from", "bits/weight", "mean cosine", "1st percentile", "top-10 overlap"),
        tuple(e.row for e in effects),
        ("bits of everything that is read, small tensors kept exactly among them; overlap: share of each sentence's 10",
         "nearest others that are the same; NF4 and Q8_0 on the same tensors as the levels",
         "the sentences are those that WordNet quotes to show how a word is used"),
        Chart("bits/weight", "mean cosine", "rebuilt from", log_y=True, complement=True),
    )  # fmt: skip


def sentences(count: int) -> list[str]:
    """Sentences that WordNet quotes to show how a word is used, drawn by a fixed seed."""
    found = examples(wordnet())
    chosen = np.random.default_rng(SEED).permutation(len(found))[:count]
    return [found[at] for at in chosen]


def examples(folder: Path) -> list[str]:
    """What WordNet's glosses quote and is a sentence: a capital, then five words or more. Each once, in file order."""
    quoted = (text for gloss in read_glosses(folder) for text in _QUOTED.findall(gloss))
    return list(dict.fromkeys(text for text in quoted if text[0].isupper() and len(text.split()) >= _WORDS))


def _effects(folder: Path, texts: list[str], bases: tuple[float, ...]) -> Iterator[Effect]:
    source = local_url(MODEL)
    original = TextEncoder(source, 128).encode(texts)
    compare = Comparison(original)
    for db in bases:
        handle = archive_model(MODEL, folder / f"{db:g}", f"operators.2.sqnr_db={db}", "operators.4.coder=rans")
        last = db == bases[-1]
        for level in handle.levels if last else (0,):
            rebuilt = _model_folder(Path(source), folder)
            restore(handle.url, str(rebuilt / "model.safetensors"), level)
            name = f"base at {db:g} dB" if level == 0 else f"{db:g} dB, level {level}"
            yield compare(name, bits_read(handle, level), TextEncoder(str(rebuilt), 128).encode(texts))
    for name in ("NF4, blocks of 64", "Q8_0"):
        rebuilt = _model_folder(Path(source), folder)
        bits = write_decoded(handle, FORMATS[name], rebuilt / "model.safetensors")
        yield compare(name, bits, TextEncoder(str(rebuilt), 128).encode(texts))


@dataclass(frozen=True)
class Comparison:
    """The original's embeddings, of unit length."""

    original: F32

    def __call__(self, name: str, bits: float, rebuilt: F32) -> Effect:
        """How near other embeddings of the same sentences come."""
        cosine = np.einsum("ij,ij->i", self.original, rebuilt)
        ours, theirs = _neighbours(self.original), _neighbours(rebuilt)
        shared = [np.intersect1d(a, b).size for a, b in zip(ours, theirs, strict=True)]
        return Effect(
            name, bits, float(cosine.mean()), float(np.percentile(cosine, 1)), float(np.mean(shared)) / NEIGHBOURS
        )


def bits_read(handle: ModelArchive, level: int | str) -> float:
    """Bits a parameter of everything that reading a level fetches: opaque tensors lie in ``exact`` at every level."""
    sizes, parameters = handle.manifest.levels, sum(int(np.prod(p.shape)) for p in handle.layout.placements)
    if level == "exact":
        return 8 * sum(sizes.values()) / parameters
    lossy = sum(sizes[f"level{k}"] for k in range(int(level) + 1)) + sizes["scales"]
    return 8 * (lossy + sum(p.nbytes for p in handle.layout.placements if p.opaque)) / parameters


def write_decoded(handle: ModelArchive, coder: Callable[[F32], Decoded], out: Path) -> float:
    """The checkpoint with the tensors that have lossy levels through a block format; bits a parameter."""
    header: dict[str, object] = {}
    parts, at, bits, parameters = [], 0, 0.0, 0
    checkpoint = open_checkpoint(MODEL)
    for place in handle.layout.placements:
        words = checkpoint.read(checkpoint[place.name])
        count = int(np.prod(place.shape))
        parameters += count
        if place.opaque:
            bits += 8 * len(words)
        else:
            values = to_float32(np.frombuffer(words, np.uint32), "F32")
            decoded = coder(np.pad(values, (0, -count % 256)))
            words = decoded.values[:count].tobytes()
            bits += decoded.bits * count
        header[place.name] = {"dtype": place.dtype, "shape": place.shape, "data_offsets": [at, at + len(words)]}
        parts.append(words)
        at += len(words)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return bits / parameters


def _neighbours(vectors: F32) -> npt.NDArray[np.int64]:
    """(n, 10) nearest others by inner product."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def _model_folder(source: Path, folder: Path) -> Path:
    """A copy of the model's directory without its weights."""
    target = Path(tempfile.mkdtemp(dir=folder))
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "onnx"))
    return target
