"""One tensor of a checkpoint: its name, type and shape, and where its bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from storage.kinds import Kind

# Bytes of one value, by the safetensors spelling of the type.
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F64": 8, "I8": 1, "I16": 2, "I32": 4,
               "I64": 8, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where a tensor's bytes lie: little-endian values, C order, one run of one file.

    Parameters
    ----------
    name: as the checkpoint spells it, unique in it.
    dtype: a key of `DTYPE_BYTES`.
    shape: () for a scalar; may contain 0.
    kind: what the tensor does in its model.
    file: URL of the file.
    offset: byte of the file at which the tensor begins.
    nbytes: bytes of the tensor, ``prod(shape)`` times the width of the dtype.
    blocks: block format, as ``Q4_0``, of a tensor that a GGUF file holds quantized: the dtype is then ``U8`` and the
        last axis counts bytes of blocks. Empty for all others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    file: str
    offset: int
    nbytes: int
    blocks: str = ""

    def of_kind(self, kind: Kind) -> TensorSpec:
        """The same tensor, of another kind."""
        return TensorSpec(self.name, self.dtype, self.shape, kind, self.file, self.offset, self.nbytes, self.blocks)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


def is_unicode(name: str) -> bool:
    """Whether a name can be written: JSON and pickles may spell halves of a pair of surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
