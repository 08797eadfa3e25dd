"""The page of a service with keys: a person gives one, and it is kept safely."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.services import Services
from tests.page_fixtures import small_service


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return small_service(tmp_path_factory.mktemp("page"))


@pytest.fixture
def guarded(services: Services, tmp_path: Path) -> Iterator[tuple[TestClient, str]]:
    """The same service with a key that may write the collection and read nothing else, and the key."""
    token, digest = new_key()
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: ann, sha256: {digest}, scopes: ['write:rows']}}]")
    keys = Keys(str(tmp_path / "keys.yaml"))
    with TestClient(build_api(Services(services.collections, services.models, keys=keys))) as client:
        yield client, token


def test_a_person_gives_a_key_once(guarded: tuple[TestClient, str]) -> None:
    """Every view asks for it and leads back; the cookie is out of reach of scripts and other sites, and forgotten."""
    client, token = guarded
    for path in ("/", "/collections/rows?row=row-1", "/models/small", "/state", "/collections/none"):
        reply = client.get(path)
        assert reply.status_code == 401
        assert f'name="next" value="{path}"' in reply.text
    wrong = client.post("/key", data={"key": "wrong", "next": "/"}, follow_redirects=False)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    assert "not known here" in wrong.text
    reply = client.post("/key", data={"key": token, "next": "/collections/rows?row=row-1"}, follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (303, "/collections/rows?row=row-1")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/collections/rows?row=row-1").status_code == 200
    home = client.get("/").text
    assert "Key: ann" in home
    assert "/models/small" not in home
    assert client.get("/models/small").status_code == 403
    client.post("/key/forget")
    assert client.get("/").status_code == 401


def test_a_cookie_only_reads(guarded: tuple[TestClient, str]) -> None:
    """What changes rows needs the header, whatever the key may do; the header goes before the cookie."""
    client, token = guarded
    client.post("/key", data={"key": token, "next": "/"})
    assert client.get("/v1/collections/rows").status_code == 200
    gone = {"ids": ["row-399"]}
    assert client.request("DELETE", "/v1/collections/rows/rows", json=gone).status_code == 401
    headers = {"Authorization": "Bearer wrong"}
    assert client.get("/v1/collections/rows", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\evil.example", "/key", "", "/a\r\nb: c"]
)
def test_the_way_back_stays_here(guarded: tuple[TestClient, str], where: str) -> None:
    client, token = guarded
    reply = client.post("/key", data={"key": token, "next": where}, follow_redirects=False)
    assert reply.headers["location"] == "/"


def test_other_sites_cannot_send_the_form(guarded: tuple[TestClient, str]) -> None:
    client, token = guarded
    for site in ("cross-site", "same-site"):
        reply = client.post("/key", data={"key": token}, headers={"Sec-Fetch-Site": site}, follow_redirects=False)
        assert (reply.status_code, "set-cookie" in reply.headers) == (403, False)
    assert client.post("/key", content=b"key=" + b"x" * 20_000).status_code == 413


def test_without_keys_nothing_is_asked(services: Services) -> None:
    client = TestClient(build_api(services))
    assert "This service has no keys" in client.get("/key").text
    assert "/key" not in client.get("/").text
