"""Write archives of today's format beside the old ones: ``python tests/golden/make_archive.py``.

Every file here must read for ever. Run this when the format's number grows, and never rewrite a file.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from storage import archive
from storage.manifest import FORMAT
from tests.archived_model import _archived, small_tensors
from tests.collection_fixtures import archive_vectors, clustered

HERE = Path(__file__).parent


def told(url: str) -> dict[str, Any]:
    """What reading an archive gives: of what is exact its hash; of rows' lossy levels, which BLAS rotates, the norm."""
    handle = archive.open(url)
    if handle.manifest.kind == "model":
        return {
            name: {str(level): sha256(handle[name].read(level).tobytes()).hexdigest() for level in handle.levels}
            for name in sorted(handle)
        }
    exact = handle.read(0, handle.count, "exact")
    lossy = {str(at): float(np.linalg.norm(handle.read(0, handle.count, at) - exact)) for at in handle.levels[:-1]}
    rows = handle.table(0, handle.count).to_pydict()
    return lossy | {
        "exact": sha256(exact.tobytes()).hexdigest(),
        "rows": sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest(),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tensors = small_tensors()
        tensors["layer.0.weight"] = tensors["layer.0.weight"][:96]
        parent = _archived(root, "small", tensors)
        step = np.float32(0.001) * np.random.default_rng(1).standard_normal((96, 128), np.float32)
        moved = tensors | {"layer.0.weight": tensors["layer.0.weight"] + step}
        urls = [parent, _archived(root, "child", moved, parent)]
        vectors, kinds = clustered(600, 16), {"kind": [f"kind {i % 5}" for i in range(600)]}
        urls.append(archive_vectors(root, vectors, columns=kinds, rows_per_unit=256))
        place, buffer = root / "archives", io.BytesIO()
        said = {str(Path(url).relative_to(place)): told(url) for url in urls}
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(p for p in place.rglob("*") if p.is_file()):
                packed.writestr(zipfile.ZipInfo(str(path.relative_to(place))), path.read_bytes())
            packed.writestr(zipfile.ZipInfo("told.json"), json.dumps(said, indent=1, sort_keys=True))
        with (HERE / f"archive-{FORMAT}.zip").open("xb") as out:
            out.write(buffer.getvalue())


if __name__ == "__main__":
    main()
