"""A model's view: treemap, levels, tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.models import ModelService
from cluster.page.treemap import Box, layer_of, layers, squarify
from cluster.services import Services
from tests.archived_model import archived_model


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    model = ModelService.open("small", archived_model(tmp_path_factory.mktemp("page")))
    with TestClient(build_api(Services({}, {"small": model})), raise_server_exceptions=False) as client:
        yield client


def test_a_model_shows_its_layers_levels_and_tensors(client: TestClient) -> None:
    """Every tensor is a box that leads to it; the plot has axes with units; the table can be narrowed and sorted."""
    html = client.get("/models/small").text
    about = client.get("/v1/models/small").json()
    for tensor in about["tensor_list"]:
        if tensor["bytes"] > 1000:
            assert html.count(f'href="/models/small/tensors/{tensor["name"]}"><title>') == 2  # wide and narrow
        assert client.get(f"/models/small/tensors/{tensor['name']}").status_code == 200
    assert "signal to noise, dB" in html
    assert re.search(r"bytes read, (kB|MB)", html)
    assert f"{about['quality']['sqnr_db_level0']:.1f} dB" in html
    rows = [r'<th scope="row"><a href="/models/small/tensors/([^"]+)"', "find=layer&sort=bytes&kind=other"]
    found = re.findall(rows[0], client.get(f"/models/small?{rows[1]}").text)
    assert found == ["layer.0.weight", "layer.1.weight"]
    assert "No tensor is called like that" in client.get("/models/small?find=<b>&from=99999").text


def test_a_tensor_is_seen_at_every_level(client: TestClient) -> None:
    html = client.get("/models/small/tensors/layer.0.weight").text
    for level in ("0", "1", "exact"):
        assert f"?level={level}" in html
    (source,) = re.findall(r'<img src="([^"]+)"', html)
    assert client.get(source.replace("&amp;", "&")).headers["content-type"] == "image/png"
    assert "<video" not in html
    assert client.get("/models/small/tensors/layer.0.weight?level=9").status_code == 422


@pytest.mark.parametrize("seed", range(5))
def test_a_treemap_fills_its_box_in_proportion(seed: int) -> None:
    """Areas are sizes, boxes lie within and do not overlap, and most of them are nearly square."""
    random = np.random.default_rng(seed)
    sizes = np.sort(random.lognormal(0, 1.5, 40))[::-1]
    whole = Box(3, 5, 200, 100)
    boxes = squarify(sizes.tolist(), whole)
    areas = np.array([box.width * box.height for box in boxes])
    assert np.allclose(areas / areas.sum(), sizes / sizes.sum())
    assert np.isclose(areas.sum(), 200 * 100)
    for at, one in enumerate(boxes):
        assert one.x >= 3 - 1e-9
        assert one.y >= 5 - 1e-9
        assert one.x + one.width <= 203 + 1e-6
        assert one.y + one.height <= 105 + 1e-6
        for two in boxes[:at]:
            wide = min(one.x + one.width, two.x + two.width) - max(one.x, two.x)
            high = min(one.y + one.height, two.y + two.height) - max(one.y, two.y)
            assert wide < 1e-6 or high < 1e-6
    assert np.median([max(b.width / b.height, b.height / b.width) for b in boxes]) < 2


@pytest.mark.parametrize(
    ("name", "layer"),
    [("encoder.layer.3.attention.self.query.weight", "encoder.layer.3"), ("blk.0.attn_q.weight", "blk.0"),
     ("embeddings.word_embeddings.weight", "embeddings.word_embeddings"), ("scale", "scale"),
     ("model.norm.weight", "model.norm"), ("blocks/0/bias", "blocks.0")],
)  # fmt: skip
def test_tensors_belong_to_layers(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_a_model_of_many_layers_is_still_a_picture() -> None:
    """10,000 tensors: what is too small to be seen is drawn together, and nothing is left out."""
    tensors = [
        {"name": f"layers.{i // 50}.experts.{i % 50}.weight", "kind": "mlp", "bytes": 1000 + i, "shape": [i]}
        for i in range(10_000)
    ]
    drawn = layers(tensors, 1120, 480, 700)
    assert len(drawn) <= 80
    assert sum(len(layer.cells) for layer in drawn) < 4000
    assert sum(cell.bytes for layer in drawn for cell in layer.cells) == sum(tensor["bytes"] for tensor in tensors)
