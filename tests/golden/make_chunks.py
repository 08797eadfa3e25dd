"""Write chunks of today's coders beside the old ones: ``python tests/golden/make_chunks.py NAME [STEM …]``.

Every file here must decode for ever. Run this when a coder's format grows, with a new name, and never rewrite a file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from operators.coders import CODERS, CoderKind, RansCoder, VideoCoder
from operators.rans_tables import Tables

HERE = Path(__file__).parent


def planes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2026)
    drift = np.exp(np.linspace(-2, 5, 4096)).reshape(64, 64)
    return {
        "narrow int8": np.round(rng.normal(size=(40, 40)) * 0.8).astype(np.int8),
        "middling int16": np.round(rng.normal(size=(32, 48)) * 6).astype(np.int16),
        "drifting int16": np.round(rng.normal(size=(64, 64)) * drift).astype(np.int16),
        "wide uint16": rng.integers(0, 700, (24, 24)).astype(np.uint16),
        "heavy int32": (rng.standard_cauchy((16, 40)) * 900).clip(-(2**31), 2**31 - 1).astype(np.int32),
        "large uint32": rng.integers(2**31, 2**31 + 2**20, (12, 20)).astype(np.uint32),
        "constant int16": np.full((256, 256), -3, np.int16),
        "noise uint8": rng.integers(0, 256, (9, 9)).astype(np.uint8),
    }


def entry(name: str, kind: CoderKind, plane: np.ndarray, tables: bytes = b"") -> dict[str, object]:
    coder = RansCoder(tables=tables) if tables else CODERS[kind]
    chunk = coder.encode(plane)
    assert np.array_equal(coder.decode(chunk, plane.shape, plane.dtype), plane)
    return described(name, kind, plane, chunk) | {"tables": tables.hex()}


def lossy(kind: str, plane: np.ndarray, quality: int) -> dict[str, object]:
    coder = VideoCoder(kind, quality)
    chunk = coder.encode(plane)
    back = coder.decode(chunk, plane.shape, plane.dtype)
    return described(f"at quality {quality}", kind, back, chunk) | {"quality": quality}


def described(name: str, kind: str, plane: np.ndarray, chunk: bytes) -> dict[str, object]:
    little = plane.astype(plane.dtype.newbyteorder("<"))
    return {
        "name": name,
        "kind": kind,
        "shape": list(plane.shape),
        "dtype": plane.dtype.name,
        "sha256": hashlib.sha256(little.tobytes()).hexdigest(),
        "chunk": chunk.hex(),
    }


def main(name: str, *stems: str) -> None:
    made = planes()
    rans = [entry(key, "rans", plane) for key, plane in made.items()]
    for columns in (0, 48):
        plane = made["middling int16"].copy()
        tables = Tables.train([plane], columns=columns).to_bytes()
        plane[3, 3] = 9999
        rans.append(entry(f"shared tables, {columns} columns", "rans", plane, tables))
    video = [
        entry(key, kind, made[key])
        for kind in ("hevc", "h264", "av1", "ffv1")
        for key in ("middling int16", "heavy int32", "constant int16")
    ]
    rows, columns = np.mgrid[0:64, 0:96]
    picture = (1000 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.int16)
    losing = [lossy(kind, picture, quality) for kind in ("hevc", "h264", "av1") for quality in (10, 30)]
    for stem, entries in (("rans", rans), ("video", video), ("video-lossy", losing)):
        if stems and stem not in stems:
            continue
        path = HERE / f"{stem}-{name}.json"
        if path.exists():
            raise SystemExit(f"{path} exists and must not change")
        path.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
