"""Neural network coding (ISO/IEC 15938-17): `python nnc_peer.py VALUES.npy FOLDER QP…`, where `nncodec` is installed.

Codes the float32 matrix of a file with `nncodec` at each quantization parameter, with its dependent quantization (a
trellis), rate-distortion optimisation and context-adaptive arithmetic coding. Prints `QP bytes` a line and leaves what
comes back in FOLDER/QP.npy. The settings are those of fewest bits among a few tried on a Gaussian.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np


def main(source: str, folder: str, *parameters: str) -> None:
    """Code and decode."""
    from nncodec import nnc

    values, stream = np.load(source), Path(folder, "stream.nnc")
    for parameter in parameters:
        with contextlib.redirect_stdout(io.StringIO()):
            nnc.compress(
                {"w": values}, bitstream_path=str(stream), qp=int(parameter), lambda_scale=0.5,
                cabac_unary_length_minus1=20,
            )  # fmt: skip
            back = nnc.decompress(str(stream))["w"]
        np.save(Path(folder, f"{parameter}.npy"), np.asarray(back, np.float32).reshape(values.shape))
        print(parameter, stream.stat().st_size, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
