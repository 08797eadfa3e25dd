"""A lineage made for real: MiniLM trained on, contrastively, on names and docstrings of installed packages.

Each step takes a batch of pairs (a function's name, its docstring), embeds both and raises the cosine of the pairs over
that of all others (InfoNCE, temperature 0.05; AdamW without weight decay, as sentence-transformers does it). Every few
steps a checkpoint is kept, weights only. The same seed gives the same pairs in the same order.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from operators.errors import HilbertflowError
from pipelines.bench.datasets import cache_dir
from pipelines.bench.material import MODEL
from storage.docstrings import DocstringRows
from storage.references import package_path

PACKAGES = ("numpy", "pyarrow", "ray", "sympy", "networkx")
PAIRS, BATCH, TOKENS = 2000, 16, 48
RATE = 2e-5


def chain(checkpoints: int, steps: int = 6, seed: int = 0) -> list[Path]:
    """Checkpoints (float32 safetensors), the first before any step, each ``steps`` steps after the one before it.

    Cached; a training that was cut off is done again.
    """
    folder = cache_dir() / f"lineage-{checkpoints}x{steps}-{seed}"
    paths = [folder / f"checkpoint-{i:02d}.safetensors" for i in range(checkpoints)]
    if not (folder / "about.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        losses = _train(paths, steps, seed)
        (folder / "about.json").write_text(json.dumps({"losses": losses, "rate": RATE, "batch": BATCH}))
    return paths


def _train(paths: list[Path], steps: int, seed: int) -> list[float]:
    try:
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise HilbertflowError(f"{error.name} is not installed", where="bench lineage",
                               remedy="pip install 'hilbertflow[encoders,dev]'") from error  # fmt: skip
    rows = DocstringRows(PACKAGES, "", PAIRS)
    table = rows.read(0, rows.count).to_pydict()
    pairs = [
        (name.rsplit(".", 1)[-1].replace("_", " "), text) for name, text in zip(table["id"], table["text"], strict=True)
    ]
    torch.manual_seed(seed)
    model = package_path(MODEL)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    random, losses = np.random.default_rng(seed), []

    def embed(texts: list[str]) -> torch.Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        hidden, mask = network(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    network.train()
    for number, path in enumerate(paths):
        for _ in range(steps if number else 0):
            chosen = [pairs[i] for i in random.choice(len(pairs), BATCH, replace=False)]
            scores = embed([name for name, _ in chosen]) @ embed([text for _, text in chosen]).T / 0.05
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        save_file({name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}, path)
        if sys.stderr.isatty():
            print(f"\rtraining {number + 1}/{len(paths)}", end="\n" if path is paths[-1] else "", file=sys.stderr)
    return losses
