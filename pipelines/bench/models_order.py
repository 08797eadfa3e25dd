"""What the order of a family's models is worth: as frames of a film, and as differences of each to the one before it.

A matrix of every member that has it in one shape is a frame. Differences are bit for bit, as `parent:` codes them; the
films are lossy, at one quantizer, 10 bits a value. Times are those at which the members were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from cluster.tours import place_in, tour
from operators import delta, rans, scales, single, video, video_lossy
from operators.bitstream import VideoKind
from operators.relation import code_score, relate
from operators.signature import Signature
from pipelines.bench.report import Table
from pipelines.bench.zoo import Member
from storage.checkpoint import open_checkpoint
from storage.signatures import shape_of, values_of

F32 = npt.NDArray[np.float32]
SIDE = 256
LOSSY: dict[VideoKind, float] = {"hevc": 20.0, "h264": 20.0, "av1": 20.0}
SEEDS = 5


@dataclass(frozen=True)
class Family:
    """Frames (n, 256, 256) float32 of its members in the order in which they were made, and their signatures."""

    name: str
    matrix: str
    frames: F32
    names: tuple[str, ...]
    signatures: tuple[Signature, ...]

    @cached_property
    def codes(self) -> npt.NDArray[np.int8]:
        """(n, 992)."""
        return np.stack([signature.code for signature in self.signatures])


def order_tables(name: str, chosen: Sequence[Member], held: Sequence[Signature]) -> list[Table]:
    """Bytes and coherence of a family by order, and what a new member costs at several places."""
    some = family_of(name, chosen, held)
    return [_orders(some), _insertions(some)]


def family_of(name: str, chosen: Sequence[Member], held: Sequence[Signature]) -> Family:
    """A plane of the largest matrix of layers, of every member that has it in one shape; embeddings where none is large
    enough.
    """
    at = [i for i, member in enumerate(chosen) if member.family == name]
    sources = [open_checkpoint(str(chosen[i].path)) for i in at]
    large = [spec for spec in sources[0].tensors if (shape := shape_of(spec)) and prod(shape) >= SIDE * SIDE]
    first = max(large, key=lambda spec: (spec.kind in ("attention", "mlp"), spec.nbytes, spec.name))
    frames, kept = [], []
    for i, source in zip(at, sources, strict=True):
        twin = next((spec for spec in source.tensors if spec.name == first.name), None)
        if twin is not None and shape_of(twin) == shape_of(first):
            values = np.asarray(values_of(twin, source.read(twin)), np.float32)
            frames.append(values.reshape(-1)[: SIDE * SIDE].reshape(SIDE, SIDE))
            kept.append(i)
    names, signatures = zip(*((chosen[i].name, held[i]) for i in kept), strict=True)
    return Family(name, first.name, np.stack(frames), names, signatures)


def coherence(frames: F32) -> float:
    """Mean correlation of a frame with the one before it."""
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return float((flat[1:] * flat[:-1]).sum(axis=1).mean())


def difference_bytes(frame: F32, parent: F32 | None) -> int:
    """Bytes of a frame bit for bit, given another one, or alone in a single level: symbols and codes of rows."""
    words = _words(frame)
    if parent is None:
        rows = scales.encode(words, "F32")
        return len(rans.encode(single.encode(words, "F32", rows))) + len(rans.encode(scales.stored(rows[None])))
    symbols, codes = delta.encode(words, _words(parent), None, "F32")
    return len(rans.encode(symbols)) + len(rans.encode(scales.stored(codes[None])))


def _words(frame: F32) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(frame).view(np.uint32)


def _orders(some: Family) -> Table:
    count = len(some.names)
    orders = {
        "tour through the signatures": [tour(some.codes)],
        "name": [sorted(range(count), key=lambda i: some.names[i])], "time": [list(range(count))],
        f"random, mean of {SEEDS}": [np.random.default_rng(seed).permutation(count).tolist() for seed in range(SEEDS)],
    }  # fmt: skip
    alone = _bits(sum(difference_bytes(frame, None) for frame in some.frames), some.frames)
    rows = []
    for how, several in orders.items():
        found = [_measured(some.frames[order]) for order in several]
        means = np.mean(found, axis=0)
        rows.append((how, f"{means[0]:.4f}", *(f"{value:.3f}" for value in means[1:])))
    gain = 1 - float(rows[0][2]) / float(rows[2][2])
    return Table(
        f"Order of the {count} models of {some.name}: a plane of {SIDE}² values of {some.matrix}, bits a value",
        ("order", "coherence", "exact differences", *(f"{kind}, QP {q:g}" for kind, q in LOSSY.items()), "exact ffv1"),
        tuple(rows), (
            "Coherence: mean correlation of a model with the one before it.",
            f"Each alone, exact: {alone:.3f} bits. ffv1 codes every frame for itself: no order changes it.",
            f"The tour takes {100 * abs(gain):.1f} % {'fewer' if gain >= 0 else 'MORE'} bits of exact differences than "
            "the order of time.",
        ),
    )  # fmt: skip


def _measured(frames: F32) -> list[float]:
    exact = sum(difference_bytes(frame, before) for before, frame in zip([None, *frames], frames, strict=False))
    deviation = float(frames.std())
    pixels = np.clip(np.rint(512 + 96 * frames / deviation), 0, 1023).astype(np.uint16)
    films = [len(video_lossy.encode_frames(pixels, kind, quality, intra=False)) for kind, quality in LOSSY.items()]
    lossless = sum(len(video.encode_plane(frame.astype(np.int16), "ffv1")) for frame in pixels)
    return [coherence(frames), *(_bits(size, frames) for size in (exact, *films, lossless))]


def _bits(size: int, frames: F32) -> float:
    return 8 * size / frames.size


def _insertions(some: Family) -> Table:
    """Each member in turn as a new one: its differences to whom it is put behind, nothing else written."""
    ways: dict[str, list[int]] = {"alone": [], "behind the last that was made": [], "at its place in the tour": [],
                                  "behind that of the highest score": [], "behind that of the least difference": [],
                                  "behind the best of all": []}  # fmt: skip
    kept, fresh = [], []
    for new in range(1, len(some.names)):
        others = [i for i in range(len(some.names)) if i != new]
        order = [others[i] for i in tour(some.codes[others])]
        place = place_in(some.codes, order, some.codes[new])
        inserted = [*order[:place], new, *order[place:]]
        kept.append(coherence(some.frames[inserted]))
        fresh.append(coherence(some.frames[[([*others, new])[i] for i in tour(some.codes[[*others, new]])]]))
        sizes = {i: difference_bytes(some.frames[new], some.frames[i]) for i in others}
        least = min(others, key=lambda i: relate(some.signatures[new], some.signatures[i]).distance)
        near = others[int(np.argmax(code_score(some.codes[new], some.codes[others])))]
        ways["alone"].append(difference_bytes(some.frames[new], None))
        ways["behind the last that was made"].append(sizes[others[-1]])
        beside = order[place - 1] if place else order[0]
        ways["at its place in the tour"].append(sizes[beside])
        ways["behind that of the highest score"].append(sizes[near])
        ways["behind that of the least difference"].append(sizes[least])
        ways["behind the best of all"].append(min(sizes.values()))
    rows = [(how, f"{np.mean([8 * s / some.frames[0].size for s in sizes]):.3f}") for how, sizes in ways.items()]
    return Table(
        f"A new model of {some.name}, each in turn: bits a value of its own differences, exact; no other is rewritten",
        ("where", "bits a value"), tuple(rows),
        (f"Coherence of the tour with it put in: {np.mean(kept):.4f}; of a tour made anew: {np.mean(fresh):.4f}.",
         "Scores see through another order of neurons, differences do not; `hilbertflow similar` prints both."),
    )  # fmt: skip
