"""The main job on real data, end to end: archive a checkpoint, embed a corpus, index it, search it, serve it."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

from operators.amounts import in_order
from operators.encode import open_encoder
from operators.errors import HilbertflowError
from pipelines import console
from pipelines.cli import leave
from pipelines.recipe import load
from pipelines.run import Report, local_ray, run
from pipelines.sources import row_source
from storage import archive
from storage.checkpoint import open_checkpoint
from storage.collection import CollectionArchive
from storage.model import ModelArchive
from storage.references import local_url

QUESTION = "singular value decomposition"
HELD_OUT = 200
RECALL_AT = 10


def main() -> int:
    """Run the quickstart; returns the exit code."""
    began = time.monotonic()
    with local_ray(None):
        model = archive_checkpoint()
        docs = embed_corpus()
        recall_of_tiers(docs)
        found = search(docs)
        asked = serve(docs)
    if found != asked:
        raise HilbertflowError(f"HTTP answered {asked[:3]} …, the command line {found[:3]} …", where="quickstart")
    console.say(f"\nThe same {len(found)} ids over HTTP. All of it took {time.monotonic() - began:.0f} s. Try next:\n")
    python = "hilbertflow" if Path(sys.prefix).name != ".venv" else ".venv/bin/hilbertflow"
    for line in (
        f"{python} search {docs.url} --text 'parse a date' --tier hnsw",
        f"{python} info {model.url}",
        f"{python} restore {model.url} out/preview.safetensors --level 0",
        f"{python} run vectors --set source.path=VECTORS.npy --set sink.path=out/mine",
        f"{python} --help",
    ):
        console.say(f"  {line}")
    return 0


def archive_checkpoint() -> ModelArchive:
    """Step 1: a real checkpoint, and the proof that it comes back bit for bit."""
    step(1, "archive a checkpoint: all-MiniLM-L6-v2, 22.7 M parameters")
    recipe = load("quickstart-model")
    report = run(recipe)
    tell(report)
    assert report.manifest is not None
    handle: ModelArchive = archive.open(report.url)
    source = open_checkpoint(recipe.source.path)
    previous, rows = np.inf, []
    for level in handle.levels:
        error = energy = 0.0
        for spec in source.tensors:
            words = np.frombuffer(source.read(spec), np.uint8)
            if level == "exact":
                restored = hashlib.sha256()
                for piece in handle[spec.name].as_bytes():
                    restored.update(piece)
                if restored.digest() != hashlib.sha256(words.tobytes()).digest():
                    raise HilbertflowError("restored bytes differ from the source's", where=spec.name)
            elif spec.dtype == "F32":
                values = words.view(np.float32).astype(np.float64)
                approximate = np.concatenate([*handle[spec.name].values(level), np.empty(0, np.float32)])
                error += float(np.square(approximate - values).sum())
                energy += float(np.square(values).sum())
        if error >= previous:
            raise HilbertflowError(f"level {level} is no better than the one beneath it", where=report.url)
        previous = error
        name = f"level{level}" if level != "exact" else "exact"
        quality = "bit-exact, SHA-256" if level == "exact" else f"{10 * np.log10(energy / error):.1f} dB"
        bits = 8 * report.manifest.levels[name] / (report.manifest.source_bytes / 4)
        rows.append((name, console.size(report.manifest.levels[name]), f"{bits:.2f}", quality))
    total = sum(report.manifest.levels.values())
    side = total - sum(report.manifest.levels[str(row[0])] for row in rows)
    rows.append(("scales, tables", console.size(side), f"{8 * side / (report.manifest.source_bytes / 4):.2f}", ""))
    rows.append(("all", console.size(total), f"{8 * total / (report.manifest.source_bytes / 4):.2f}", ""))
    rows.append(("source", console.size(report.manifest.source_bytes), "32.00", ""))
    console.table(("level", "bytes", "bits a weight", "signal to noise, up to this level"), rows)
    console.say(f"{len(source.tensors)} tensors restored with the source's bytes; every prefix of levels decodes.")
    return handle


def embed_corpus() -> CollectionArchive:
    """Steps 2 and 3: docstrings embedded and archived, two kinds of index in two shards."""
    step(2, "embed the docstrings of installed packages, archive them, index them")
    recipe = load("quickstart-docs")
    everything = row_source(recipe.model_copy(update={"source": recipe.source.model_copy(update={"limit": None})}))
    console.say(f"{everything.count:,} docstrings found in {recipe.source.path}")
    report = run(recipe)
    tell(report)
    assert report.manifest is not None and recipe.index is not None
    handle: CollectionArchive = archive.open(report.url)
    quality, rows = report.manifest.quality, []
    for name, size in in_order(report.manifest.levels).items():
        cosine = quality.get(f"cosine_{name}")
        said = f"{cosine:.4f}" if cosine else "bit-exact, CRC-32C" if name == "exact" else ""
        rows.append((name, console.size(size), f"{size / handle.count:.0f}", said))
    source = report.manifest.source_bytes
    rows.append(("float32 source", console.size(source), f"{source / handle.count:.0f}", ""))
    console.table(("level", "bytes", "bytes a vector", "mean cosine, up to this level"), rows)
    return handle


def recall_of_tiers(docs: CollectionArchive) -> None:
    """Recall@10 of each tier against the exact scan, on docstrings that are not in the archive."""
    from cluster.engine import SearchEngine
    from cluster.results import recall

    step(3, f"recall@{RECALL_AT} against the exact scan, {HELD_OUT} held-out docstrings as queries")
    recipe = load("quickstart-docs")
    everything = row_source(recipe.model_copy(update={"source": recipe.source.model_copy(update={"limit": None})}))
    archived = set(docs.ids(0, docs.count).to_pylist())
    stride, texts = max(1, everything.count // (4 * HELD_OUT)), []
    for start in range(0, everything.count, stride):
        row = everything.read(start, min(start + 1, everything.count)).to_pylist()
        texts += [r["text"] for r in row if r["id"] not in archived]
        if len(texts) == HELD_OUT:
            break
    queries = open_encoder(local_url(docs.encoder), docs.encoder_tokens).encode(texts)
    engine = SearchEngine.open(docs.url)
    oracle = engine.search(queries, RECALL_AT, tier="exact")
    rows = []
    for tier in ("exact", "ivfpq", "hnsw"):
        began = time.perf_counter()
        found = engine.search(queries, RECALL_AT, tier=tier)
        rows.append((tier, f"{recall(found, oracle):.3f}", f"{len(texts) / (time.perf_counter() - began):,.0f}"))
    console.table(("tier", f"recall@{RECALL_AT}", "queries/s, one batch"), rows)


def search(docs: CollectionArchive) -> list[str]:
    """Step 4: ask in words."""
    from pipelines.commands.searching import print_results, search_text

    step(4, f'search: hilbertflow search {docs.url} --text "{QUESTION}"')
    results = search_text(docs.url, QUESTION, RECALL_AT)
    print_results(docs, results)
    ids = [str(i) for i in results.ids[0]]
    if "numpy.linalg.svd" not in ids[:3]:
        raise HilbertflowError("numpy.linalg.svd is not among the first three", where=docs.url)
    return ids


def serve(docs: CollectionArchive) -> list[str]:
    """Step 5: the same over HTTP."""
    import httpx

    from cluster import running
    from cluster.config import ServeConfig

    step(5, "serve the collection on loopback and ask the same over HTTP")
    collections = [{"name": "docs", "url": docs.url}]
    config = ServeConfig.model_validate({"collections": collections, "encoder": {"model": docs.encoder}, "port": 0})
    app = running.start(config)
    try:
        question = {"texts": [QUESTION], "k": RECALL_AT}
        answer = httpx.post(f"{app.url}/v1/collections/docs/search", json=question, timeout=120)
        answer.raise_for_status()
        console.say(f"POST {app.url}/v1/collections/docs/search {question} → {answer.status_code}")
        ids: list[str] = answer.json()["results"][0]["ids"]
    finally:
        app.stop()
    return ids


def step(number: int, title: str) -> None:
    """A heading."""
    console.say(f"\n{number}. {title}\n")


def tell(report: Report) -> None:
    """What a run did, in a line."""
    if not report.written:
        console.say(f"{report.url}: already archived, nothing to do")
        return
    assert report.manifest is not None
    rate = console.size(round(report.manifest.source_bytes / max(report.seconds, 1e-9)))
    units = console.count(report.written, "unit")
    console.say(f"{report.url}: {units} in {report.seconds:.1f} s, {rate} of source a second")
    if report.peak_memory:
        console.say(f"largest worker: {console.size(max(report.peak_memory.values()))}")


if __name__ == "__main__":
    try:
        leave(main())
    except HilbertflowError as error:
        console.fail(str(error))
        leave(1)
