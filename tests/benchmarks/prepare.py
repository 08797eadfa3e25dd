"""Prepare the data sets of the benchmarks, and cache them.

python tests/benchmarks/prepare.py [gloss|fashion|models|PATH.hdf5]...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the rooms lie two folders up

from operators.errors import HilbertflowError
from pipelines.bench.datasets import PREPARE, cache_dir, load


def main(names: list[str]) -> int:
    """Prepare the named data sets (both by default) and say what lies where."""
    for name in names or list(PREPARE):
        try:
            if name == "models":
                from pipelines.bench.zoo_make import make

                made = make()
                print(f"models: {len(made)} of {len({m.family for m in made})} families, in {made[0].path.parents[1]}")
                continue
            data = load(name)
        except HilbertflowError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{name}: {data.train.shape} train, {data.test.shape} test, {data.metric}, in {cache_dir() / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
