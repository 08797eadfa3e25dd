"""Train what a collection is ordered and coded with, in seconds, from a sample of its rows."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators import lists, rowcode
from operators.coders import CODERS, Coder, CoderKind, RansCoder
from operators.errors import HilbertflowError
from operators.klt import Klt
from operators.klt import fit as fit_klt
from operators.operator import Operator, Over
from operators.planes import with_column
from operators.rans_tables import Tables
from operators.row_blocks import RowBlocks, vector_matrix
from operators.row_code import LIST, RowCoding, TrainedRowCoding
from operators.rowcode import RowCode

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

SEEN_BY_CODE = 16384
"""Rows that the transform, the steps and the entropy tables are trained on."""
PER_LIST = 12
"""Rows for each list that the centroids are trained on."""
_MOST_BYTES = 256 << 20
_TRIED_BLOCKS = 64
_TABLE_VALUES = 4 << 20
_COMPONENTS, _BITS = 8, 8  # of the Hilbert curve


def sample_rows(blocks: RowBlocks, dim: int) -> int:
    """Rows of a sample for a resolved order; it takes 256 MiB at most."""
    wanted = max(SEEN_BY_CODE, PER_LIST * int(blocks.lists))
    return max(1, min(wanted, _MOST_BYTES // (4 * dim)))


@dataclass(frozen=True, eq=False)
class Curve:
    """Runs of a Hilbert curve through the principal components, as lists.

    cuts: int32 (k, 255), where each coefficient is cut. edges: uint64 (K - 1,), places where runs of the curve end.
    """

    cuts: I32
    edges: npt.NDArray[np.uint64]

    def assign(self, klt: Klt, rows: F32) -> I32:
        """The run (n,) of each row."""
        coefficients = klt.forward(rows)
        cells = [np.searchsorted(cut, coefficients[:, i], "right") for i, cut in enumerate(self.cuts)]
        keys = lists.hilbert_keys(np.stack(cells, axis=1).astype(np.uint32), _BITS)
        return np.searchsorted(self.edges, keys, "right").astype(np.int32)

    @classmethod
    def fit(cls, klt: Klt, sample: F32, count: int) -> Self:
        """A curve cut into at most ``count`` runs of about equally many rows of the sample."""
        coefficients = klt.forward(sample)[:, :_COMPONENTS]
        shares = np.arange(1, 1 << _BITS) / (1 << _BITS)
        whole = cls(np.quantile(coefficients, shares, axis=0).T.astype(np.int32), np.empty(0, np.uint64))
        cells = [np.searchsorted(cut, coefficients[:, i], "right") for i, cut in enumerate(whole.cuts)]
        keys = np.sort(lists.hilbert_keys(np.stack(cells, axis=1).astype(np.uint32), _BITS))
        return cls(whole.cuts, np.unique(keys[np.arange(1, count) * len(keys) // count]))


@dataclass(frozen=True, eq=False)
class Trained:
    """What every unit of a collection is made with.

    Parameters
    ----------
    code: of the rows, centroids included, in the order in which the lists lie.
    coders: of every array of the code that has any width.
    curve: where the lists are runs of one.
    """

    code: RowCode
    coders: Mapping[str, Coder]
    curve: Curve | None = None

    @property
    def lists(self) -> int:
        """How many lists; 1 where there are none."""
        return len(self.code.centres)

    def assign(self, rows: F32) -> I32:
        """The list (n,) of each row."""
        if self.curve is not None:
            return self.curve.assign(self.code.klt, rows)
        if self.lists == 1:
            return np.zeros(len(rows), np.int32)
        return lists.nearest(rows, self.code.centres)[:, 0]

    def operator(self, options: RowCoding) -> TrainedRowCoding:
        """The operator of the stream."""
        return TrainedRowCoding(**asdict(options), code=self.code, coders=self.coders)

    @property
    def hash(self) -> str:
        """Content hash."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Everything as a NumPy archive of plain arrays; equal when the content is."""
        arrays: dict[str, npt.NDArray[Any]] = dict(self.code.to_arrays())
        kinds = {name: coder.kind for name, coder in self.coders.items()}
        for name, coder in self.coders.items():
            arrays[f"tables {name}"] = np.frombuffer(getattr(coder, "tables", b""), np.uint8)
        if self.curve is not None:
            arrays |= {"cuts": self.curve.cuts, "edges": self.curve.edges}
        about = json.dumps({"code": self.code.attributes(), "coders": kinds}, sort_keys=True)
        arrays["about"] = np.frombuffer(about.encode(), np.uint8)
        sink = io.BytesIO()
        np.savez(sink, allow_pickle=False, **dict(sorted(arrays.items())))
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of :meth:`to_bytes`; HilbertflowError when the bytes are no such thing."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays.pop("about").tobytes())
            code = RowCode.from_arrays(arrays, about["code"])
            kinds = about["coders"]
            coders = {
                name: coder_of(kinds[name], arrays[f"tables {name}"].tobytes()) for name in code.names if name in kinds
            }
        except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
            raise HilbertflowError("what was trained is damaged", remedy="remove the archive and run again") from error
        return cls(code, coders, Curve(arrays["cuts"], arrays["edges"]) if "cuts" in arrays else None)


@dataclass(frozen=True, eq=False)
class AssignLists(Operator):
    """Say which list every row belongs to."""

    trained: Trained
    kind: Literal["assign_lists"] = "assign_lists"

    over: ClassVar[Over] = "rows"

    def apply(self, batch: pa.Table) -> pa.Table:
        """Add ``LIST`` int32 to rows with ``vector``."""
        return with_column(batch, LIST, pa.array(self.trained.assign(vector_matrix(batch))))


def coder_of(kind: CoderKind, tables: bytes = b"") -> Coder:
    """A coder with its shared tables, if it has any."""
    return RansCoder(tables=tables) if tables else CODERS[kind]


def train(sample: F32, blocks: RowBlocks, coding: RowCoding, coder: Callable[[str], CoderKind]) -> Trained:
    """The order, the code and the entropy tables for rows like the sample, deterministic.

    Parameters
    ----------
    sample: float32 (n, d), finite; :func:`sample_rows` says how many.
    blocks: resolved (:meth:`RowBlocks.resolved`).
    coding: the options of the code.
    coder: the kind of coder of an array.
    """
    part = sample[np.linspace(0, len(sample) - 1, min(len(sample), SEEN_BY_CODE)).astype(np.int64)]
    curve, centroids, mine = None, None, None
    if blocks.order == "hilbert":
        klt = fit_klt(part)
        curve = Curve.fit(klt, part, int(blocks.lists))
        mine = curve.assign(klt, part)
        centroids = _means(part, mine, len(curve.edges) + 1)
    elif blocks.order == "lists":
        found = lists.train(sample, min(int(blocks.lists), len(sample)), rounds=8)
        centroids = np.ascontiguousarray(found[lists.tour(found)])
        mine = lists.nearest(part, centroids)[:, 0]
    bits = rowcode.usual_bits(part) if coding.bits == "auto" else coding.bits
    code = rowcode.fit(part, bits, centroids, mine, coding.states, blocks.rows, coding.emphasis)
    return Trained(code, _coders(code, part, mine, coder), curve)


def _means(rows: F32, mine: I32, count: int) -> F32:
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, mine, rows)
    sizes = np.bincount(mine, minlength=count)[:, None]
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), rows.mean(axis=0)).astype(np.float32)


def _coders(code: RowCode, rows: F32, mine: I32 | None, kind_of: Callable[[str], CoderKind]) -> dict[str, Coder]:
    """For each array the coder asked for; rANS with the tables that take the fewest bytes on some blocks."""
    most = max(code.block, _TABLE_VALUES // code.klt.dim)
    rows, mine = rows[:most], None if mine is None else mine[:most]
    if mine is not None:  # as they will lie
        order = np.argsort(mine, kind="stable")
        rows, mine = rows[order], mine[order]
    coders: dict[str, Coder] = {}
    in_blocks, in_one = code.encode(rows, mine), code.encode(rows, mine, np.zeros(1, np.int64))
    for name, values in in_blocks.items():
        if not values.shape[1]:
            continue
        kind = kind_of(name)
        coders[name] = CODERS[kind] if kind != "rans" else _rans(values, in_one[name], code.block)
    return coders


def _rans(values: npt.NDArray[Any], in_one: npt.NDArray[Any], block: int) -> Coder:
    """With tables for each column, or for runs: these from rows coded as one block, where like values lie together."""
    if not values.any():
        return RansCoder()
    starts = range(0, len(values), block)
    tried = [values[at : at + block] for at in starts[:: max(1, len(starts) // _TRIED_BLOCKS)]]
    kinds = ((values, values.shape[1]), (in_one, 0))
    shared = [Tables.train([rows], columns=columns).to_bytes() for rows, columns in kinds]
    candidates = [RansCoder(tables=tables) for tables in (*shared, b"")]
    return min(candidates, key=lambda coder: sum(len(coder.encode(rows)) for rows in tried))
