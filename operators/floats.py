"""Number formats of checkpoints: their bits, the order of their bits, and exact conversion to and from float32.

Everything works on unsigned *words*, never on floats of the format itself, so that NaN payloads, infinities, the sign
of zero and subnormal numbers survive, and so that a processor that flushes subnormals cannot change a stored byte:
widening is a table look-up or a shift, rounding is integer arithmetic on the bits of a float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.errors import HilbertflowError

Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Format:
    """One dtype of the safetensors format.

    Parameters
    ----------
    name: safetensors spelling.
    width: bytes a value.
    mantissa: stored mantissa bits; -1 for a format that is kept as opaque bits.
    bias: exponent bias.
    top: first magnitude (bits without the sign) that is not a finite number.
    """

    name: str
    width: int
    mantissa: int = -1
    bias: int = 0
    top: int = 0

    @property
    def lossy(self) -> bool:
        """Whether the values may be quantized: every other format is stored as opaque words, exact at every level."""
        return self.mantissa >= 0

    @property
    def word(self) -> int:
        """Bytes of one stored word: 8-byte formats are two words of 4."""
        return min(self.width, 4)

    @property
    def sign(self) -> int:
        """The sign bit as a mask."""
        return 1 << (8 * self.width - 1)

    @property
    def drop(self) -> int:
        """Mantissa bits that a float32 has more."""
        return 23 - self.mantissa

    @property
    def rebias(self) -> int:
        """What to take from a float32's exponent field to get this format's."""
        return 127 - self.bias


def _table(*formats: Format) -> Mapping[str, Format]:
    return MappingProxyType({one.name: one for one in formats})


FORMATS = _table(
    Format("F32", 4, 23, 127, 0x7F80_0000),
    Format("BF16", 2, 7, 127, 0x7F80),
    Format("F16", 2, 10, 15, 0x7C00),
    Format("F8_E5M2", 1, 2, 15, 0x7C),
    Format("F8_E4M3", 1, 3, 7, 0x7F),  # "fn": no infinities, one NaN of each sign
    Format("F64", 8),
    *(Format(f"{kind}{bits}", bits // 8) for kind in "IU" for bits in (8, 16, 32, 64)),
    Format("BOOL", 1),
)


def dtype_info(dtype: str) -> Format:
    """The format named ``dtype``; an unknown name is an error."""
    try:
        return FORMATS[dtype]
    except KeyError:
        raise HilbertflowError(
            f"dtype {dtype!r} is not known", where="dtype", remedy=f"use one of {', '.join(FORMATS)}"
        ) from None


def bits_view(array: npt.NDArray[Any], dtype: str) -> Words:
    """The words of an array of ``dtype``, flat and little-endian, without copying where memory allows it.

    ``array`` is of any numpy dtype (``uint8`` buffers included) whose bytes are a whole number of values; the result
    has one word a value, two for the 8-byte formats.
    """
    form = dtype_info(dtype)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size % form.width:
        raise HilbertflowError(
            f"{flat.size} bytes are not a whole number of {dtype} values", where="bits_view", remedy="check the shape"
        )
    if flat.ctypes.data % form.word:
        flat = flat.copy()
    return flat.view(f"<u{form.word}")


def to_ordered(bits: Words, dtype: str) -> Words:
    """Map words to unsigned integers that ascend with the value: a bijection on all patterns, -0.0 just below 0.0.

    Negative NaNs come lowest, positive ones highest. Opaque formats map to themselves.
    """
    form = dtype_info(dtype)
    if not form.lossy:
        return bits
    kind, sign = bits.dtype.type, form.sign
    return np.where(bits & kind(sign), ~bits, bits | kind(sign)).astype(bits.dtype)


def from_ordered(ordered: Words, dtype: str) -> Words:
    """Inverse of :func:`to_ordered`."""
    form = dtype_info(dtype)
    if not form.lossy:
        return ordered
    kind, sign = ordered.dtype.type, form.sign
    return np.where(ordered & kind(sign), ordered ^ kind(sign), ~ordered).astype(ordered.dtype)


def to_float32(bits: Words, dtype: str) -> npt.NDArray[np.float32]:
    """The values of words of a lossy format, exactly, in the same shape; NaN payloads are in the words only."""
    form = dtype_info(dtype)
    if not form.lossy:
        raise HilbertflowError(f"{dtype} has no lossy levels", where="to_float32", remedy="keep its words")
    if form.drop == 0:
        return np.ascontiguousarray(bits, dtype=np.uint32).view(np.float32)
    if form.rebias == 0:
        return (np.asarray(bits).astype(np.uint32) << np.uint32(form.drop)).view(np.float32)
    return _float32_of(dtype)[bits]


def round_to(values: npt.NDArray[np.float32], dtype: str) -> Words:
    """Words of the nearest values of a lossy format, ties to even, in the same shape.

    Beyond the largest finite value comes infinity, or NaN in F8_E4M3, which has none. NaN becomes the format's first
    quiet NaN.
    """
    form = dtype_info(dtype)
    if not form.lossy:
        raise HilbertflowError(f"{dtype} cannot hold rounded floats", where="round_to", remedy="keep its words")
    source = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if form.drop == 0:
        return source.copy()
    rounded = np.empty(source.shape, f"<u{form.word}")
    _round_words(source.reshape(-1), rounded.reshape(-1), form.drop, form.rebias, form.top, form.sign)
    return rounded


@njit(cache=True, nogil=True, inline="always")
def round_magnitude(word, drop, rebias, top):  # type: ignore[no-untyped-def]
    """Magnitude bits (no sign) of the number nearest to a float32's magnitude bits, ties to even; int64 in and out.

    At and above the middle between the largest finite number and the next one comes ``top``; so do NaNs.
    """
    exponent = word >> 23
    if exponent > rebias or rebias == 0:
        shift, whole = drop, word - (rebias << 23)
    else:  # subnormal in the target: 1.mantissa as an integer, in units of the target's smallest number
        shift = min(drop + rebias + 1 - exponent, 31)
        whole = ((word & 0x7FFFFF) | 0x800000) if exponent else word
    if shift == 0:
        return min(whole, top)
    return min((whole + ((1 << (shift - 1)) - 1) + ((whole >> shift) & 1)) >> shift, top)


@njit(cache=True, nogil=True, inline="always")
def ceil_magnitude(word, drop, rebias, top):  # type: ignore[no-untyped-def]
    """Magnitude bits of the smallest number that is not below a float32's magnitude bits; int64 in and out."""
    exponent = word >> 23
    if exponent > rebias or rebias == 0:
        shift, whole = drop, word - (rebias << 23)
    else:
        shift = min(drop + rebias + 1 - exponent, 31)
        whole = ((word & 0x7FFFFF) | 0x800000) if exponent else word
    return min((whole + ((1 << shift) - 1)) >> shift, top)


@njit(cache=True, nogil=True)
def _round_words(source, rounded, drop, rebias, top, sign):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        word = np.int64(source[i] & np.uint32(0x7FFFFFFF))
        magnitude = round_magnitude(word, drop, rebias, top)
        if word > 0x7F800000 and drop < 21:  # NaN: infinity with the first mantissa bit set; F8_E4M3's is `top` itself
            magnitude = top | (1 << (22 - drop))
        elif word > 0x7F800000:
            magnitude = top | ((1 << (22 - drop)) if drop == 21 else 0)
        rounded[i] = magnitude | (sign if source[i] >> np.uint32(31) else 0)


@cache
def _float32_of(dtype: str) -> npt.NDArray[np.float32]:
    """Every value of a 1- or 2-byte format as float32, by its word: built in integers, scaled by powers of two."""
    form = dtype_info(dtype)
    words = np.arange(1 << (8 * form.width), dtype=np.int64)
    magnitude = words & (form.sign - 1)
    fraction, exponent = magnitude & ((1 << form.mantissa) - 1), magnitude >> form.mantissa
    whole = np.where(exponent > 0, fraction | (1 << form.mantissa), fraction)
    power = np.maximum(exponent, 1) - form.bias - form.mantissa
    value = np.ldexp(whole.astype(np.float64), power)
    value[magnitude == form.top] = np.inf if form.name != "F8_E4M3" else np.nan
    value[magnitude > form.top] = np.nan
    table = np.where(words >= form.sign, -value, value).astype(np.float32)
    table.setflags(write=False)
    return np.asarray(table)
