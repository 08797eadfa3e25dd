"""The page in process: what each view tells, what it says when something cannot be shown, and that all is escaped."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.config import Limits
from cluster.encoding import Encoded, Encoding
from cluster.recent import Recent
from cluster.services import Services
from cluster.thumbnails import Thumbnails
from cluster.vectors import F32
from operators.errors import HilbertflowError
from storage.fs import Location
from storage.under_way import tell
from tests.page_fixtures import DIM, small_service
from tests.pictures import bomb, png


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return small_service(tmp_path_factory.mktemp("page"))


def seeing(services: Services) -> Services:
    """The same with a model that takes every picture for the same vector, and counts them."""

    async def texts(some: list[str]) -> F32:
        return np.ones((len(some), DIM), np.float32)

    async def pictures(some: list[bytes]) -> Encoded:
        return Encoded(np.ones((len(some), DIM), np.float32), {})

    return Services(services.collections, services.models, encoders={"rows": Encoding(texts, pictures)})


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(build_api(services), raise_server_exceptions=False) as client:
        yield client


def words(html: str) -> str:
    """What a reader sees: no markup, single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_home_tells_what_is_served(client: TestClient) -> None:
    text = words(client.get("/").text)
    assert "1 collection of 400 rows, 1 model of" in text
    assert "Everything answers" in text


def test_a_service_with_models_only_has_a_page(services: Services) -> None:
    with TestClient(build_api(Services({}, services.models))) as client:
        reply = client.get("/")
        assert reply.status_code == 200
        assert "No collection is served" in reply.text


def test_nothing_from_outside_is_markup(client: TestClient) -> None:
    """Metadata, ids, the form's own fields, names in the address; the policy forbids inline scripts and styles."""
    given = {"row": "row-1", "filter": "lines > 0", "tier": "exact", "q": '"><img src=x>'}
    reply = client.get("/collections/rows", params=given)
    assert reply.status_code == 200
    assert "&lt;script&gt;alert(" in reply.text
    assert "<script>" not in reply.text
    assert "<img src=x" not in reply.text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    for path in (
        "/collections/rows?row=row-1&filter=<b>",
        "/collections/<b>",
        "/models/<b>",
        "/collections/rows?k=<b>&row=row-1",
    ):
        assert "<b>" not in client.get(path).text


def test_every_view_has_no_inline_script_or_style(client: TestClient) -> None:
    for path in ("/", "/collections/rows", "/collections/rows?row=row-1", "/state", "/docs", "/collections/none",
                 "/models/small", "/models/small/tensors/scale"):  # fmt: skip
        html = client.get(path).text
        assert re.findall(r"<script(?! src=\"/assets/)|<style|\sstyle=|\son\w+=|javascript:", html) == []
        assert re.findall(r"(?:src|href)=\"(?:https?:)?//", html) == []


def test_a_row_finds_its_neighbours(client: TestClient, services: Services) -> None:
    """The rows that the service itself finds, without the one that was asked with; all options are in every link."""
    reply = client.get("/collections/rows?row=row-7&k=10&tier=exact&filter=lines+%3E+20")
    found = re.findall(r'title="Rows like this one">(row-\d+)<', reply.text)
    assert found[0] == "row-7"
    vector = services.collections["rows"].view.take(np.array([services.collections["rows"].log.rows(["row-7"])[0]]))
    body = {"vectors": vector.tolist(), "k": 10, "tier": "exact", "filter": "lines > 20"}
    (expected,) = client.post("/v1/collections/rows/search", json=body).json()["results"]
    assert found[1:] == [name for name in expected["ids"] if name != "row-7"][:10]
    assert "k=10&amp;tier=exact&amp;filter=lines%20%3E%2020" in reply.text or "&k=10&tier=exact" in reply.text
    assert "Read from storage" in reply.text


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [("row=row-1&filter=lines+%3E", 422, "is not an expression"), ("row=zzz", 422, "no row has the id"),
     ("q=words", 422, "were not made by an encoder"), ("row=row-1&tier=hnsw", 422, "is not built"),
     ("row=row-1&k=x", 422, "k is"), ("row=row-1&level=99", 422, "level"),
     ("row=row-1&tier=nothing", 422, "unknown tier")],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_beside_the_form(client: TestClient, query: str, status: int, said: str) -> None:
    reply = client.get(f"/collections/rows?{query}")
    assert reply.status_code == status
    assert said in words(reply.text)
    assert 'role="search"' in reply.text


def test_rows_that_were_put_in_are_shown_and_asked_with(client: TestClient) -> None:
    """A row of the log is a row like any other."""
    vector = np.full((1, DIM), 9.0).tolist()
    client.post(
        "/v1/collections/rows/rows", json={"ids": ["late/?&#"], "vectors": vector, "metadata": {"title": ["new"]}}
    )
    assert "late/?&amp;#" in client.get("/collections/rows?row=late%2F%3F%26%23").text
    assert client.request("DELETE", "/v1/collections/rows/rows", json={"ids": ["late/?&#"]}).status_code == 200


@pytest.mark.parametrize("path", ["/collections/none", "/models/none", "/models/small/tensors/none"])
def test_what_is_not_there_is_said_on_a_page(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 404
    assert "There is nothing here" in reply.text


def test_an_address_of_nothing(client: TestClient) -> None:
    """A page for people, a problem document for programs, which says where to look."""
    page = client.get("/nowhere", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 404 and "What is served here" in page.text
    problem = client.get("/v1/nowhere").json()
    assert (problem["status"], problem["remedy"]) == (404, "GET /docs lists every path")
    assert "/v1/nowhere" in problem["detail"]


def test_assets_are_files_that_a_browser_may_keep(client: TestClient) -> None:
    for address in set(re.findall(r"/assets/[^\"]+", client.get("/").text)):
        reply = client.get(address)
        assert reply.status_code == 200
        assert "immutable" in reply.headers["cache-control"]
    assert client.get("/assets/..%2frender.py").status_code == 404
    assert client.get("/assets/routes.py").status_code == 404


def test_the_interface_is_described_from_its_own_document(client: TestClient) -> None:
    """Every operation and every field of a body; nothing comes from another host."""
    document, html = client.get("/openapi.json").json(), client.get("/docs").text
    for path in document["paths"]:
        assert f"<code>{path}</code>" in html
    for name in ("vectors", "texts", "nprobe", "Range"):
        assert name in html
    assert "cdn" not in html


def test_a_picture_is_asked_with(services: Services) -> None:
    """From the form, with its options; what is no picture, or too large a one, is said; no picture is no question."""
    with TestClient(build_api(seeing(services)), raise_server_exceptions=False) as client:
        assert 'formenctype="multipart/form-data"' in client.get("/collections/rows").text
        data = png(1)
        fields = {"k": "10", "filter": "lines > 200", "tier": "exact"}
        reply = client.post("/collections/rows", files={"image": ("a.png", data, "image/png")}, data=fields)
        assert reply.status_code == 200
        assert "data:image/webp;base64," in reply.text
        body = {"vectors": [[1.0] * DIM], "k": 10, "filter": "lines > 200", "tier": "exact"}
        (expected,) = client.post("/v1/collections/rows/search", json=body).json()["results"]
        assert re.findall(r'title="Rows like this one">(row-\d+)<', reply.text) == expected["ids"]
        for data, status in ((b"<b>not a picture", 422), (bomb(60_000, 60_000), 413), (bomb(9_000, 9_000), 413)):
            reply = client.post("/collections/rows", files={"image": ("a.png", data, "image/png")})
            assert reply.status_code == status
            assert 'role="alert"' in reply.text
            assert "<b>not" not in reply.text and " at 0x" not in reply.text
        empty = b'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert "Rows to begin with" in client.post("/collections/rows", content=empty, headers=kind).text
        assert client.post("/collections/rows", content=b"x").status_code == 422


def test_the_state_tells_what_was_asked_and_what_is_under_way(client: TestClient, services: Services) -> None:
    """Versions, queries of the last minute, and a run that has written two of its three units."""
    before = services.metrics.recent["rows"].queries if services.metrics.recent else 0
    client.get("/collections/rows?row=row-1")
    place = Location(services.models["small"].archive.url.removesuffix("small") + "half")
    tell(place, "embed", 3, "scratch/embedded")
    for unit in (0, 1):
        place.write_atomic(f"scratch/embedded/{unit:08d}-abc.arrow", b"")
    text = words(client.get("/state").text)
    assert "embed: 2 of 3 units" in text
    assert f"Queries so far {before + 1}" in text
    assert "Version of the rows" in text
    assert re.search(r"queries a second (\d+ )?0 60 s ago now", text)  # the axes of the picture
    long_ago = {"step": "embed", "units": 3, "folder": "scratch/late", "began": 0.0}
    place.write_atomic("scratch/run.json", json.dumps(long_ago).encode())
    assert "Not heard of for" in client.get("/state").text
    place.write_atomic("journal/lease-00000001.json", b"{}")  # of a run whose first unit takes long
    text = words(client.get("/state").text)
    assert "embed: 0 of 3 units" in text and "Not heard of for" not in text
    place.delete(recursive=True)
    assert "None in the roots" in client.get("/state").text


def test_a_minute_is_counted_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than a minute is forgotten; totals are not."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recent = Recent()
    recent.add(5, 0.1)
    now[0] = 101.5
    recent.add(2, 0.3, partial=True)
    now[0] = 102.0
    assert recent.by_second()[-2:] == [5, 2]
    assert recent.latency() == (pytest.approx(0.2), 0.3)
    now[0] = 161.0
    assert sum(recent.by_second()) == 2
    now[0] = 190.0
    assert (sum(recent.by_second()), recent.latency()) == (0, (0.0, 0.0))
    assert (recent.queries, recent.partial) == (7, 2)


def test_thumbnails_are_of_the_very_file(tmp_path: Path) -> None:
    """Scaled down; another content, another place or a bomb is refused; metadata cannot lead out of the folder."""
    import hashlib

    from PIL import Image

    data = png(3, (400, 300))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(data)
    small, digest = Thumbnails(Location(str(tmp_path / "in"))), hashlib.sha256(data).hexdigest()
    made = small.read("a.png", digest)
    image = Image.open(io.BytesIO(made))
    assert (image.format, image.size) == ("WEBP", (192, 144))
    assert small.read("a.png", digest) is made
    for path, known in (("../b.png", digest), (str(tmp_path / "b.png"), digest), ("x/../../b.png", digest),
                        ("a.png", "0" * 64), ("", digest), (None, digest), ("c.png", digest[::-1])):  # fmt: skip
        with pytest.raises(HilbertflowError):
            Thumbnails(Location(str(tmp_path / "in"))).read(path, known)


def test_a_filter_alone_shows_rows_that_it_lets_through(client: TestClient) -> None:
    reply = client.get("/collections/rows?filter=lines+%3E+397")
    assert reply.status_code == 200
    assert "Rows that the filter lets through" in words(reply.text)
    assert set(re.findall(r">(row-\d+)</a>", reply.text)) == {"row-398", "row-399"}
    assert "No row matches the filter" in words(client.get("/collections/rows?filter=lines+%3E+5000").text)
    wrong = client.get("/collections/rows?filter=nonsense+%3D%3D%3D")
    assert wrong.status_code == 422 and "is not an expression" in words(wrong.text)


def test_the_form_offers_no_more_rows_than_the_service_gives(services: Services) -> None:
    tight = Services(services.collections, services.models, Limits(k=20))
    with TestClient(build_api(tight)) as client:
        reply = client.get("/collections/rows?row=row-1&k=100")
        assert len(re.findall(r'<li class="hit">', reply.text)) == 20
        assert re.findall(r'<option value="(\d+)"', reply.text.split('id="k"')[1].split("</select>")[0]) == ["10", "20"]
