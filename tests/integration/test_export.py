"""Pictures of planes: what is written is a picture of the tensor."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from operators.errors import HilbertflowError
from operators.hilbert_map import from_layout
from pipelines.export import export
from pipelines.recipe import load
from pipelines.run import run
from tests.fixtures import write_safetensors

SIDE = 32


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> str:
    """An archive of one tensor that rises steadily."""
    folder = tmp_path_factory.mktemp("ramp")
    values = np.linspace(-1, 1, 12 * SIDE * SIDE, dtype=np.float32)
    write_safetensors(folder / "m.safetensors", {"ramp": ("F32", values.shape, values.tobytes())})
    settings = [f"source.path={folder}/m.safetensors", f"sink.path={folder}", f"operators.1.side={SIDE}",
                "operators.4.coder=rans"]  # fmt: skip
    return run(load("quickstart-model", settings)).url


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]


def test_a_png_shows_every_plane_brighter_than_the_last(ramp: str, tmp_path: Path) -> None:
    assert export(ramp, "ramp", str(tmp_path / "p.png")) == 12
    (sheet,) = frames(tmp_path / "p.png")
    tiles = [sheet[y * 36 : y * 36 + SIDE, x * 36 : x * 36 + SIDE] for y in range(3) for x in range(4)]
    means = [float(tile.mean()) for tile in tiles]
    assert means == sorted(means) and means[0] < 70 and means[-1] > 185
    along = from_layout(tiles[5].reshape(-1), "hilbert").astype(int)
    assert (np.diff(along) >= 0).all()


@pytest.mark.parametrize("level", [0, "exact"])
def test_an_mp4_has_a_frame_a_plane(ramp: str, tmp_path: Path, level: int | str) -> None:
    assert export(ramp, "ramp", str(tmp_path / "p.mp4"), level) == 12  # type: ignore[arg-type]
    means = [float(frame.mean()) for frame in frames(tmp_path / "p.mp4")]
    assert len(means) == 12 and means == sorted(means)


def test_what_cannot_be_shown_is_said(ramp: str, tmp_path: Path) -> None:
    with pytest.raises(HilbertflowError, match="did you mean 'ramp'"):
        export(ramp, "rump", str(tmp_path / "p.png"))
    with pytest.raises(HilbertflowError, match=r"OUT\.png"):
        export(ramp, "ramp", str(tmp_path / "p.gif"))
    assert not list(tmp_path.iterdir())
