"""Planes by a vector codebook in layers: runs of values to the nearest of K points, told cell by cell down a tree.

Rows are scaled to unit deviation and cut into runs of ``dim`` values; k-means on sampled planes gives the codebook, or
its user does, and :mod:`operators.codetree` its layers. After the last of them comes ``fine``: the index of each value
on a uniform lattice, less the one that the codebook predicts; then ``exact``, as for scalar quantizers. A layer's
symbols lie in the order of how many children the cell above has, so that the entropy coder sees choices of two apart
from choices of ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import exact, plane_index, refine, scales, uniform
from operators.coders import Coder
from operators.codetree import CodeTree
from operators.errors import HilbertflowError
from operators.floats import to_float32
from operators.operator import Operator, Over
from operators.planes import with_column

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint32]
DIMS = (1, 2, 4, 8, 16, 32, 64)
MOST = 65_536
"""Points of a codebook at most."""


@dataclass(frozen=True)
class VectorQuantize(Operator):
    """Quantize runs of values to the nearest point of a codebook, in place of ``quantize``.

    Parameters
    ----------
    dim: values of a run, a power of two from 1 to 64; 0 takes 8, or what the codebook has.
    codes: points of the codebook, 2 to 65,536, ``log2(codes) / dim`` bits a value before entropy coding; 0 takes 256,
        or what the codebook has.
    codebook: path or URL of a ``.npy`` file (codes, dim) of points of one's own, of runs of values divided by the
        deviation of their row; empty trains one on sampled planes.
    fine_db: signal to noise of the level between the codebook and the exact one, on Gaussian rows, in decibels.
    """

    kind: Literal["vq"] = "vq"
    dim: int = 0
    codes: int = 0
    codebook: str = ""
    fine_db: float = 44.0

    over: ClassVar[Over] = "planes"

    def __post_init__(self) -> None:
        if not self.codebook:  # an archive's recipe tells the sizes that it was made with
            object.__setattr__(self, "dim", self.dim or 8)
            object.__setattr__(self, "codes", self.codes or 256)
        if self.dim not in (0, *DIMS):
            raise HilbertflowError(f"dim is {self.dim}", where="vq", remedy="use a power of two from 1 to 64")
        if self.codes and not 2 <= self.codes <= MOST:
            raise HilbertflowError(f"codes is {self.codes}", where="vq", remedy=f"use 2 to {MOST}")
        if not 10 <= self.fine_db <= 60:
            raise HilbertflowError(f"fine_db is {self.fine_db:g}", where="vq", remedy="use 10 to 60 decibels")

    def sized(self, codes: int, dim: int) -> VectorQuantize:
        """The same with the sizes of its codebook; raises where they are none, or not those that were asked for."""
        has = f"has {codes:,} points of {dim:,} values"
        if not 2 <= codes <= MOST or dim not in DIMS:
            sizes = f"save 2 to {MOST:,} points, one a row, of {', '.join(map(str, DIMS[:-1]))} or {DIMS[-1]} values"
            raise HilbertflowError(has, where=self.codebook, remedy=sizes)
        asked = {"codes": (self.codes, codes), "dim": (self.dim, dim)}
        wrong = [f"{name}: {said}" for name, (said, is_) in asked.items() if said not in (0, is_)]
        if wrong:
            raise HilbertflowError(
                f"{has}, the recipe says {', '.join(wrong)}", where=self.codebook,
                remedy="leave that out of the recipe, or name another codebook",
            )  # fmt: skip
        return replace(self, codes=codes, dim=dim)

    def determines(self) -> dict[str, Any]:
        """Sizes and training, or of a codebook of one's own nothing that its content does not tell."""
        own = {"codes", "dim"} if self.codebook else set()
        return {name: value for name, value in super().determines().items() if name not in {"codebook", *own}}

    def apply(self, batch: pa.Table) -> pa.Table:
        """Only :class:`VectorCoding` can."""
        raise HilbertflowError("the codebook was not trained before the stream", where="vq")


@dataclass(frozen=True)
class TreeLayers(Operator):
    """Split the codes of ``vq`` into layers, in place of ``layerize``; ``fine`` and ``exact`` follow.

    Parameters
    ----------
    widths: bits that each layer adds (the last one ends at the codebook itself), one number for all, ``clusters`` for
        layers of equal width, or ``values`` for layers in which equal shares of the values come to their final point.
    layers: how many, for the two rules.
    """

    kind: Literal["tree"] = "tree"
    widths: tuple[int, ...] | int | Literal["clusters", "values"] = (4, 2, 2)
    layers: int = 3

    over: ClassVar[Over] = "planes"

    def __post_init__(self) -> None:
        numbers = (self.widths,) if isinstance(self.widths, int) else self.widths
        if not isinstance(numbers, str) and (not numbers or any(not 1 <= width <= 16 for width in numbers)):
            raise HilbertflowError(f"widths are {self.widths}", where="tree", remedy="use 1 to 16 bits a layer")
        if not 1 <= self.layers <= 8:
            raise HilbertflowError(f"layers is {self.layers}", where="tree", remedy="use 1 to 8")

    def apply(self, batch: pa.Table) -> pa.Table:
        """Only :class:`VectorCoding` can."""
        raise HilbertflowError("the codebook was not trained before the stream", where="tree")


@dataclass(frozen=True, eq=False)
class VectorLadder:
    """The way back, with the face of :class:`operators.decode.Ladder`.

    Parameters
    ----------
    tree: nested codebooks of runs of values of unit deviation.
    step: of the fine lattice, in units of a row's scale.
    """

    tree: CodeTree
    step: float
    exact: bool = True
    layout: Literal["raster"] = "raster"

    @property
    def refinements(self) -> int:
        """Levels after the first: layers of the tree, then fine."""
        return self.tree.depth

    @property
    def lattice(self) -> refine.Lattice:
        """Of the fine level."""
        return refine.Lattice(self.step, uniform.REACH)

    def values(self, levels: Sequence[npt.NDArray[Any]], codes: Codes, dtype: str, out: F32 | None = None) -> F32:
        """One plane at level ``len(levels) - 1``: (height, width) float32, in ``out`` if given."""
        if len(levels) > self.tree.depth:
            return refine.reconstruct(self._fine(levels, codes), dtype, codes, self.lattice, 0, out)
        points = self._points(in_place(self.tree, levels), codes)
        if out is None:
            return points
        out[...] = points
        return out

    def bits(
        self,
        levels: Sequence[npt.NDArray[Any]],
        codes: Codes,
        residual: npt.NDArray[Any],
        dtype: str,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """One plane bit for bit: its words (height·width,), in ``out`` (height, width) if given."""
        return exact.decode(residual, dtype, self._fine(levels, codes), codes, self.lattice, 0, out).reshape(-1)

    def predicted(self, symbols: Sequence[npt.NDArray[Any]], codes: Codes) -> npt.NDArray[np.int16]:
        """Lattice indices that all layers of the tree predict: single IEEE operations, the same everywhere."""
        points, steps = self._points(symbols, codes), scales.row_steps(codes, self.step)
        ratio = np.divide(points, steps[:, None], out=np.zeros_like(points), where=steps[:, None] > 0)
        return np.clip(np.rint(ratio), -32767, 32767).astype(np.int16)

    def _fine(self, levels: Sequence[npt.NDArray[Any]], codes: Codes) -> I32:
        symbols = in_place(self.tree, levels[: self.tree.depth])
        return (levels[-1].astype(np.int16) + self.predicted(symbols, codes)).astype(np.int32)

    def _points(self, symbols: Sequence[npt.NDArray[Any]], codes: Codes) -> F32:
        runs = self.tree.decode(symbols)
        scale = np.where(codes == 0, 0, scales.scale_of(codes)).astype(np.float32)
        return np.asarray(runs.reshape(len(codes), -1) * scale[:, None], np.float32)


@dataclass(frozen=True, eq=False)
class VectorCoding(Operator):
    """What a run puts in the place of ``vq``, ``tree`` and the coder, once the codebook is trained.

    Parameters
    ----------
    dim: values of a run.
    ladder: how it is read.
    coders: of every array, by name.
    """

    kind: Literal["vector_code"] = "vector_code"
    dim: int = field(kw_only=True)
    ladder: VectorLadder = field(kw_only=True)
    coders: Mapping[str, Coder] = field(kw_only=True)

    over: ClassVar[Over] = "planes"

    def apply(self, batch: pa.Table) -> pa.Table:
        """From planes of words in raster order to ``scales``, ``means``, coded levels, ``crc``, ``energy``, errors."""
        coded = [self._plane(row) for row in batch.to_pylist()]
        batch = batch.drop_columns(["bits"])
        for name in ("scales", "means", *self.coders):
            batch = with_column(batch, name, pa.array([plane[name] for plane in coded], pa.binary()))
        batch = with_column(batch, "crc", pa.array([plane["crc"] for plane in coded], pa.uint32()))
        for name in ("energy", *(f"error{level}" for level in range(self.ladder.refinements + 1))):
            batch = with_column(batch, name, pa.array([plane[name] for plane in coded], pa.float64()))
        return batch

    def _plane(self, row: dict[str, Any]) -> dict[str, Any]:
        bits, dtype = np.frombuffer(row["bits"], f"u{row['word']}"), row["dtype"]
        out: dict[str, Any] = {f"error{level}": 0.0 for level in range(self.ladder.refinements + 1)}
        out |= {name: None for name in self.coders} | {"crc": google_crc32c.value(bits.tobytes()), "energy": 0.0}
        wide, shape = f"u{row['exact_word']}", (row["height"], row["width"])
        if row["opaque"]:
            return out | {
                "scales": b"",
                "means": b"",
                "exact": self.coders["exact"].encode(bits.astype(wide).reshape(shape)),
            }
        ladder, tree = self.ladder, self.ladder.tree
        words = bits.reshape(shape)
        codes = scales.encode(words, dtype)
        values = to_float32(words, dtype)
        symbols = tree.encode(self._nearest(values, codes))
        index = uniform.quantize(values, codes, ladder.step)
        levels: list[npt.NDArray[Any]] = sorted_layers(tree, symbols)
        levels.append((index - ladder.predicted(symbols, codes)).astype(np.int16))
        finite = np.isfinite(values)
        out["energy"] = float(np.square(values[finite], dtype=np.float64).sum())
        for level in range(len(levels)):
            apart = ladder.values(levels[: level + 1], codes, dtype)[finite].astype(np.float64) - values[finite]
            out[f"error{level}"] = float(np.square(apart).sum())
            out[f"level{level}"] = self.coders[f"level{level}"].encode(levels[level].astype(level_dtype(tree, level)))
        residual = exact.encode(words, dtype, index.astype(np.int32), codes, ladder.lattice, 0)
        out["exact"] = self.coders["exact"].encode(residual.astype(wide, copy=False).reshape(shape))
        return out | {"scales": codes.tobytes(), "means": plane_index.means(values).tobytes()}

    def _nearest(self, values: F32, codes: Codes) -> I32:
        """Flat codes (height, width / dim) of the runs of a plane."""
        tree = self.ladder.tree
        found = nearest(tree.points[-1], runs(values, codes, self.dim))
        return np.asarray(tree.leaf[found].reshape(len(values), -1), np.int32)


def nearest(points: F32, given: F32) -> npt.NDArray[np.int64]:
    """Number (n,) of the point of a codebook (codes, dim) that lies nearest to each run (n, dim)."""
    import faiss  # loaded by those who train and code with it, not by all who import operators

    index = faiss.IndexFlatL2(points.shape[1])
    index.add(np.ascontiguousarray(points))
    return np.asarray(index.search(given, 1)[1][:, 0])


def runs(values: F32, codes: Codes, dim: int) -> F32:
    """Runs (n, dim) of a plane's rows, scaled to unit deviation; what is not finite counts as zero."""
    scale = np.where(codes == 0, 1.0, scales.scale_of(codes))
    with np.errstate(invalid="ignore"):
        unit = np.where(np.isfinite(values), values, 0) / scale[:, None]
    return np.ascontiguousarray(unit, np.float32).reshape(-1, dim)


def sorted_layers(tree: CodeTree, symbols: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Layers as stored: the symbols of each in the order of how many children the cells above have."""
    stored = [symbols[0]]
    for layer in range(1, len(symbols)):
        order = _order(tree, symbols[:layer])
        stored.append(symbols[layer].reshape(-1)[order].reshape(symbols[layer].shape))
    return stored


def in_place(tree: CodeTree, stored: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Inverse of :func:`sorted_layers`."""
    symbols = [stored[0]]
    for layer in range(1, len(stored)):
        back = np.empty(stored[layer].size, np.int32)
        back[_order(tree, symbols)] = stored[layer].reshape(-1)
        symbols.append(back.reshape(stored[layer].shape))
    return symbols


def level_dtype(tree: CodeTree, level: int) -> str:
    """Element type of a level's array."""
    return "int32" if level < tree.depth and tree.children(level) > 32_767 else "int16"


def _order(tree: CodeTree, above: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    children = np.diff(tree.first[len(above)])
    return np.argsort(children[tree.cells(above).reshape(-1)], kind="stable")
