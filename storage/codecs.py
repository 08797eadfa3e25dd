"""The coders as Zarr v3 codecs: ``hilbertflow.rans``, ``.hevc``, ``.h264``, ``.av1``, ``.ffv1`` and ``.raw``.

Each turns a chunk into bytes and so stands where Zarr's ``bytes`` codec stands; put ``crc32c`` behind it::

    zarr.create_array(store, shape=(n, 256, 256), chunks=(1, 256, 256), shards=(64, 256, 256), dtype="int8",
                      serializer=RansCodec(), compressors=[Crc32cCodec()])

Zarr finds them by the entry point ``zarr.codecs``; importing this module registers them as well.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import parse_named_configuration
from zarr.registry import register_codec

from operators.coders import COARSEST, Coder, CoderKind, RansCoder, RawCoder, VideoCoder
from operators.errors import HilbertflowError
from operators.rans_tables import Tables
from operators.raw import KINDS

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.chunk_grids import ChunkGrid
    from zarr.core.common import JSON
    from zarr.core.dtype.wrapper import TBaseDType, TBaseScalar, ZDType

PREFIX = "hilbertflow."


@dataclass(frozen=True)
class PlaneCodec(ArrayBytesCodec):
    """A coder as a codec. Chunks of any number of axes: all but the last are taken as rows."""

    kind: ClassVar[CoderKind]
    is_fixed_size = False

    @abstractmethod
    def coder(self) -> Coder:
        """The coder with this codec's options."""

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's entry in ``zarr.json``; HilbertflowError when it says anything else."""
        cls._options(data)
        return cls()

    @classmethod
    def _options(cls, data: dict[str, JSON], *known: str) -> Mapping[str, JSON]:
        """The entry's configuration, which has no other keys than those known."""
        _, options = parse_named_configuration(data, PREFIX + cls.kind, require_configuration=False)
        found: Mapping[str, JSON] = options or {}
        if unknown := sorted(set(found) - set(known)):
            raise HilbertflowError(
                f"unknown option {unknown[0]!r}", where=f"codec {PREFIX}{cls.kind}",
                remedy=f"it takes {', '.join(known) or 'none'}",
            )  # fmt: skip
        return found

    def to_dict(self) -> dict[str, JSON]:
        """The codec's entry in ``zarr.json``."""
        return {"name": PREFIX + self.kind, "configuration": {}}

    def validate(
        self, *, shape: tuple[int, ...], dtype: ZDType[TBaseDType, TBaseScalar], chunk_grid: ChunkGrid
    ) -> None:
        """Refuse arrays of anything but integers of 8 to 32 bits."""
        self._check(dtype)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """The codec itself; refuses what :meth:`validate` refuses, which sharding does not ask of its inner codecs."""
        self._check(array_spec.dtype)
        return self

    def _check(self, dtype: ZDType[TBaseDType, TBaseScalar]) -> None:
        native = dtype.to_native_dtype()
        if native.newbyteorder("=") not in KINDS:
            raise HilbertflowError(
                f"an array of {native} cannot have the codec {PREFIX}{self.kind}",
                remedy="use integers of 8 to 32 bits",
            )

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before coding."""
        raise NotImplementedError

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        values = np.ascontiguousarray(chunk_array.as_numpy_array())
        chunk = self.coder().encode(values.astype(values.dtype.newbyteorder("="), copy=False))
        return chunk_spec.prototype.buffer.from_bytes(chunk)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        data = np.ascontiguousarray(chunk_bytes.as_numpy_array())
        native = chunk_spec.dtype.to_native_dtype()
        values = self.coder().decode(data.data, chunk_spec.shape, native.newbyteorder("="))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values.astype(native, copy=False))

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)


@dataclass(frozen=True)
class RansCodec(PlaneCodec):
    """rANS entropy coding (:mod:`operators.rans`).

    Parameters
    ----------
    tables: shared frequency tables, ``Tables.train(...).to_bytes()``, kept in ``zarr.json`` as base 64; empty when
        every chunk carries its own.
    """

    tables: bytes = b""

    kind: ClassVar[CoderKind] = "rans"

    def coder(self) -> Coder:
        """The coder with these tables."""
        return RansCoder(tables=self.tables)

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's entry in ``zarr.json``; HilbertflowError when its tables are malformed."""
        try:
            tables = base64.b64decode(str(cls._options(data, "tables").get("tables", "")), validate=True)
        except binascii.Error as error:
            raise HilbertflowError("the tables are not base 64", where=f"codec {PREFIX}rans") from error
        if tables:
            Tables.from_bytes(tables)
        return cls(tables=tables)

    def to_dict(self) -> dict[str, JSON]:
        """The codec's entry in ``zarr.json``."""
        options: dict[str, JSON] = {"tables": base64.b64encode(self.tables).decode()} if self.tables else {}
        return {"name": PREFIX + self.kind, "configuration": options}


@dataclass(frozen=True)
class _VideoCodec(PlaneCodec):
    """A video codec: a plane, the last two axes of a chunk, is a frame."""

    def coder(self) -> Coder:
        """The coder of this codec."""
        kind: Literal["hevc", "h264", "av1", "ffv1"] = self.kind  # type: ignore[assignment]
        return VideoCoder(kind)


@dataclass(frozen=True)
class _LossyCodec(_VideoCodec):
    """A video codec that can lose.

    Parameters
    ----------
    quality: None, the default, for no loss; else the codec's quantization parameter, for AV1 its rate factor, 0 (fine)
        to :data:`operators.coders.COARSEST`. Archives are written without loss: a level beneath the exact one
        must come back as it was. With loss the codecs are for arrays of pictures.
    """

    quality: int | None = None

    def __post_init__(self) -> None:
        most = COARSEST[self.kind]
        if self.quality is not None and not (type(self.quality) is int and 0 <= self.quality <= most):
            raise HilbertflowError(
                f"quality {self.quality!r}", where=f"codec {PREFIX}{self.kind}",
                remedy=f"use 0 (fine) to {most} (coarse), or none for no loss",
            )  # fmt: skip

    def coder(self) -> Coder:
        """The coder of this codec, at its quality."""
        kind: Literal["hevc", "h264", "av1"] = self.kind  # type: ignore[assignment]
        return VideoCoder(kind, self.quality)

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's entry in ``zarr.json``; HilbertflowError when it is no quality."""
        return cls(cls._options(data, "quality").get("quality"))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JSON]:
        """The codec's entry in ``zarr.json``."""
        options: dict[str, JSON] = {} if self.quality is None else {"quality": self.quality}
        return {"name": PREFIX + self.kind, "configuration": options}


@dataclass(frozen=True)
class HevcCodec(_LossyCodec):
    """H.265 through x265."""

    kind: ClassVar[CoderKind] = "hevc"


@dataclass(frozen=True)
class H264Codec(_LossyCodec):
    """H.264 through x264."""

    kind: ClassVar[CoderKind] = "h264"


@dataclass(frozen=True)
class Av1Codec(_LossyCodec):
    """AV1 through SVT-AV1, decoded by dav1d."""

    kind: ClassVar[CoderKind] = "av1"


@dataclass(frozen=True)
class Ffv1Codec(_VideoCodec):
    """FFV1 (RFC 9043)."""

    kind: ClassVar[CoderKind] = "ffv1"


@dataclass(frozen=True)
class RawCodec(PlaneCodec):
    """Values as they are, with a check sum."""

    kind: ClassVar[CoderKind] = "raw"

    def coder(self) -> Coder:
        """The raw coder."""
        return RawCoder()


CODECS: Mapping[CoderKind, type[PlaneCodec]] = {
    codec.kind: codec for codec in (RansCodec, HevcCodec, H264Codec, Av1Codec, Ffv1Codec, RawCodec)
}


def coder_of(document: bytes, where: str) -> Coder:
    """The coder of the inner chunks of a sharded array, from its ``zarr.json``; HilbertflowError when it has none."""
    try:
        (sharding, *_) = json.loads(document)["codecs"]
        inner = sharding["configuration"]["codecs"][0]
        return CODECS[inner["name"].removeprefix(PREFIX)].from_dict(inner).coder()
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise HilbertflowError("damaged", where=where, remedy="`hilbertflow verify` names the object") from error


for _kind, _codec in CODECS.items():
    register_codec(PREFIX + _kind, _codec)
