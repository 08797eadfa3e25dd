"""The closed registry of operators."""

from __future__ import annotations

from operators.embed import Embed
from operators.frame_encode import FrameEncode
from operators.hilbert_map import HilbertMap
from operators.layerize import Layerize
from operators.operator import Operator
from operators.quantize import Quantize
from operators.row_blocks import RowBlocks
from operators.row_code import RowCoding
from operators.sample import Sample
from operators.vector_code import TreeLayers, VectorQuantize

OPERATORS: dict[str, type[Operator]] = {
    "sample": Sample,
    "embed": Embed,
    "row_blocks": RowBlocks,
    "row_code": RowCoding,
    "hilbert_map": HilbertMap,
    "quantize": Quantize,
    "layerize": Layerize,
    "vq": VectorQuantize,
    "tree": TreeLayers,
    "frame_encode": FrameEncode,
}
"""Every operator a recipe can name. To add one: one file, one line here."""
