"""Frequency tables of the rANS coder: of one plane, or shared by the chunks of an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from operators import rans_bits as k
from operators import rans_cluster as clusters
from operators import rans_freq as freqs
from operators import rans_runs as runs
from operators import rans_tokens as tokens_of
from operators.errors import HilbertflowError
from operators.rans_tail import fold_tail

MAX_TABLES = 64
TABLE_BYTES = 640  # more than any serialized table takes: 15 + 228 · 22 bits at most
EXCEPTION = 48  # bits, about, of a value that a table cannot code


@dataclass(frozen=True)
class Tables:
    """Tables ready for coding. Two are equal when their bytes are.

    Parameters
    ----------
    blob: the serialized tables, a few dozen bytes each: what an archive stores. Empty for the tables of one chunk.
    shifts: (T,) int32, low bits of a value that are stored raw.
    freq: (T, 228) int32 frequencies, each row summing to 4096.
    plan: (d,) uint8 table of each column of a row of d values, or empty: then each run of a chunk names its own.
    """

    blob: bytes
    shifts: k.I32 = field(compare=False, repr=False)
    freq: k.I32 = field(compare=False, repr=False)
    plan: k.U8 = field(compare=False, repr=False)

    @property
    def count(self) -> int:
        """How many tables."""
        return len(self.shifts)

    @cached_property
    def present(self) -> k.U8:
        """(228,) uint8: 1 for each token that some table codes."""
        return np.asarray(self.freq.any(axis=0), np.uint8)

    @cached_property
    def top(self) -> int:
        """The largest token that any table codes."""
        return k.TOKENS - 1 - int(self.present[::-1].argmax())

    @cached_property
    def shifted(self) -> bool:
        """Whether any table leaves low bits raw."""
        return bool(self.shifts.any())

    def decoder(self) -> k.U32:
        """(T·4096,) entries for the decoding kernels."""
        return _decoder(self) if self.blob else _decoder.__wrapped__(self)

    def encoder(self) -> tuple[k.U32, k.U64]:
        """(T·228,) codes and reciprocals for the encoding kernels."""
        return _encoder(self) if self.blob else _encoder.__wrapped__(self)

    def costs(self) -> npt.NDArray[np.int64]:
        """(T, 228) coded size of a token in 1/1024 bits, raw bits included; the price of an exception
        where it cannot be coded."""
        return _costs(self) if self.blob else _costs.__wrapped__(self)

    def to_bytes(self) -> bytes:
        """What :meth:`from_bytes` reads."""
        return self.blob

    @staticmethod
    def from_bytes(blob: bytes) -> Tables:
        """Read shared tables; HilbertflowError when they are malformed."""
        return _from_bytes(bytes(blob))

    @staticmethod
    def train(samples: Sequence[npt.NDArray[Any]], columns: int = 0, most: int = 16) -> Tables:
        """Tables for chunks like the samples.

        Parameters
        ----------
        samples: integer arrays as they will be coded. Their statistics set the tables; tokens that they lack but that
            lie below the largest seen stay codable. Any other value costs about six bytes.
        columns: 0, or the length of a row: then each column is given the table that suits it, and chunks say nothing.
        most: tables at most, 64 or fewer.
        """
        return _train(samples, columns, most)


def fold(plane: npt.NDArray[Any]) -> tuple[k.U32, int]:
    """Values of any integer type up to 32 bits, flat and without sign, and the bitwise or of all."""
    out = np.empty(plane.size, np.uint32)
    flat = plane.reshape(-1)
    native = np.ascontiguousarray(flat, flat.dtype.newbyteorder("="))
    narrow = native.view(np.int32) if native.dtype == np.uint32 else native
    return out, int(tokens_of.zigzag(narrow, plane.dtype.kind == "i", out))


def write(counts: k.I32, shifts: k.I32, out: k.U8, at: int) -> tuple[int, Tables]:
    """Write tables for histograms (T, 228) at bit ``at`` of zeroed ``out``; the next bit and the tables."""
    freq = np.empty((len(counts), k.TOKENS), np.int32)
    at = int(freqs.put_tables(out, at, counts, shifts, freq))
    return at, Tables(b"", shifts.astype(np.int32), freq, np.empty(0, np.uint8))


def read(data: k.U8, at: int, count: int) -> tuple[int, Tables]:
    """``count`` tables at bit ``at`` of ``data``; the next bit and the tables."""
    freq, shifts = np.empty((count, k.TOKENS), np.int32), np.empty(count, np.int32)
    at = int(freqs.get_tables(data, at, freq, shifts))
    if at < 0:
        raise HilbertflowError(k.ERRORS[at], where="rans")
    return at, Tables(b"", shifts, freq, np.empty(0, np.uint8))


def _train(samples: Sequence[npt.NDArray[Any]], columns: int, most: int) -> Tables:
    folded = [fold(sample)[0] for sample in samples if sample.size]
    if not folded or not 1 <= most <= MAX_TABLES:
        raise HilbertflowError("no values to train tables on" if not folded else f"{most} tables", where="rans")
    if columns:
        if any(values.size % columns for values in folded):
            raise HilbertflowError(f"samples are not whole rows of {columns} values", where="rans")
        values = np.ascontiguousarray(np.concatenate(folded).reshape(-1, columns).T)
        block, flat = values.shape[1], values.reshape(-1)
    else:
        flat = np.concatenate(folded)
        block = 1024
        while flat.size > block * 256:
            block *= 2
    made = group(flat, int(flat.max()), block, most, settle=not columns)
    smooth, count = made.counts.copy(), len(made.shifts)
    for row in smooth:
        row[: np.flatnonzero(row)[-1] + 3] += 1  # and two beyond the largest seen
    out = np.zeros(count * TABLE_BYTES, np.uint8)
    at, _ = write(smooth, made.shifts, out, 0)
    plan = made.ids if columns else np.empty(0, np.uint8)
    head = np.array([1, count, len(plan) & 255, len(plan) >> 8 & 255, len(plan) >> 16], np.uint8)
    return _from_bytes(head.tobytes() + plan.tobytes() + out[: (at + 7) // 8].tobytes())


def group(values: k.U32, every: int, block: int, most: int, *, settle: bool = True, folded: bool = False) -> Grouped:
    """Cut values in runs and give each one of at most ``most`` tables.

    Parameters
    ----------
    values: unsigned; ``every`` is the bitwise or of them, or their maximum.
    block: symbols that are looked at together, a multiple of GRAIN.
    settle: join blocks to runs and move their borders; otherwise each block is a run.
    folded: fold the tail of values that are all below 128, in place, where it pays.
    """
    tail = NO_TAIL
    groups = -(-values.size // block)
    shifts, ids = np.zeros(groups, np.int32), np.zeros(groups, np.uint8)
    if every >= k.DIRECT:
        clusters.block_shifts(values, block, shifts)
    ends = np.minimum(np.arange(1, groups + 1) * block, values.size).astype(np.int32)
    for coarse in (1, 2, 4, 32):  # fewer different shifts when there are too many
        rounded = -(-shifts // coarse) * coarse if coarse < 32 else np.full_like(shifts, shifts.max())
        rounded = np.minimum(rounded, k.MAX_SHIFT).astype(np.int32)
        parts = split(values, ends, rounded)
        counts = np.zeros((groups, k.TOKENS), np.int32)
        clusters.block_counts(parts.tokens, block, counts)
        if folded and every < k.DIRECT:
            tail = Tail(*fold_tail(values, parts.tokens, block, counts))
        count = int(clusters.cluster(counts, rounded, most, clusters.n_log_n(), ids))
        if count:
            break
    counts, shifts = counts[:count], rounded[:count]
    coarser = runs.coarsen(counts, shifts, clusters.n_log_n())
    if settle:
        ends, ids = join_runs(ends, ids)
    moved = settle and len(ends) > 1
    if moved:
        costs = np.empty(counts.shape, np.int32)
        runs.symbol_costs(counts, shifts, costs)
        runs.move_borders(values, ends, ids, shifts, costs, block)
        ends, ids = join_runs(ends, ids)
        count = int(runs.renumber(ids, shifts))
        counts, shifts = counts[:count], shifts[:count]
    if moved or coarser:
        parts = split(values, ends, shifts[ids])
        runs.run_counts(parts.tokens, ends, ids, counts)
    return Grouped(counts, shifts, ends, ids, parts, tail)


def join_runs(ends: k.I32, ids: k.U8) -> tuple[k.I32, k.U8]:
    """Runs that are not empty, those of one table that lie one after another as one; works in place."""
    left = int(runs.join_runs(ends, ids))
    return ends[:left], ids[:left]


class Parts(NamedTuple):
    """Values taken apart: tokens, and what :func:`operators.rans_tokens.put_raw` needs."""

    tokens: k.U8
    highs: k.U32
    bits: int  # raw bits in all


class Tail(NamedTuple):
    """Values folded by :func:`operators.rans_tail.fold_tail`; none where the width is 0."""

    begin: int
    width: int
    lows: k.U8


NO_TAIL = Tail(0, 0, np.empty(0, np.uint8))


class Grouped(NamedTuple):
    """Histograms (T, 228) and shifts of the tables, ends and tables of the runs, the values' parts and folded tail."""

    counts: k.I32
    shifts: k.I32
    ends: k.I32
    ids: k.U8
    parts: Parts
    tail: Tail


def split(values: k.U32, ends: k.I32, shifts: k.I32) -> Parts:
    """Take values apart at the shift of their run (or column, where there are no ``ends``)."""
    tokens, highs, bits = padded_tokens(values.size), values, 0
    if shifts.any():
        highs = np.empty(values.size, np.uint32)
        bits = int(tokens_of.high_parts(values, ends, shifts, highs))
    return Parts(tokens, highs, bits + int(tokens_of.tokenize(highs, tokens)))


def padded_tokens(count: int) -> k.U8:
    """Room for tokens that can be read four at a time (``.base``): zeros behind them."""
    whole = np.empty((count + 3) // 4, np.uint32)
    whole[-1:] = 0
    return whole.view(np.uint8)[:count]


@lru_cache(maxsize=64)
def _from_bytes(blob: bytes) -> Tables:
    data = np.frombuffer(blob, np.uint8)
    if data.size < 5 or data[0] != 1 or not 1 <= data[1] <= MAX_TABLES:
        raise HilbertflowError("shared tables are malformed", where="rans")
    count, length = int(data[1]), int(data[2]) | int(data[3]) << 8 | int(data[4]) << 16
    plan = data[5 : 5 + length]
    if plan.size < length or (length and int(plan.max()) >= count):
        raise HilbertflowError("the plan of shared tables is malformed", where="rans")
    _, tables = read(data[5 + length :], 0, count)
    if length:
        freqs.leave_none_alone(tables.freq)
    return Tables(blob, tables.shifts, tables.freq, plan)


@lru_cache(maxsize=64)
def _decoder(tables: Tables) -> k.U32:
    out = np.empty(tables.count * k.SLOTS, np.uint32)
    freqs.decoder_tables(tables.freq, out)
    return out


@lru_cache(maxsize=64)
def _encoder(tables: Tables) -> tuple[k.U32, k.U64]:
    code, inverse = np.empty(tables.count * k.TOKENS, np.uint32), np.empty(tables.count * k.TOKENS, np.uint64)
    freqs.encoder_tables(tables.freq, code, inverse)
    return code, inverse


@lru_cache(maxsize=64)
def _costs(tables: Tables) -> npt.NDArray[np.int64]:
    raw = np.array([[int(s) + tokens_of.extra_width(t) for t in range(k.TOKENS)] for s in tables.shifts], np.int64)
    bits = np.rint((k.SLOTS_LOG - np.log2(np.maximum(tables.freq, 1))) * clusters.UNIT).astype(np.int64)
    return np.where(tables.freq > 0, bits + raw * clusters.UNIT, EXCEPTION * clusters.UNIT)
