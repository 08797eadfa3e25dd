"""The page in headless Chromium: it fits, it is legible, it works by keyboard, without scripts, and offline.

`HILBERTFLOW_SCREENSHOTS=FOLDER` keeps a picture of every view, light and dark, of a phone and of a screen, to be looked
at.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from cluster.api import build_api
from cluster.auth import Keys, new_key
from cluster.encoding import Encoded, Encoding
from cluster.models import ModelService
from cluster.services import Services
from operators.encode import ClipEncoder, open_encoder
from pipelines.recipe import load
from pipelines.run import run_here
from storage.fs import Location
from storage.under_way import tell
from tests.archived_model import archived_child
from tests.model_fixtures import clip
from tests.page_fixtures import collection_service, small_service
from tests.pictures import png

WIDTHS = (360, 1280)
VIEWS = {
    "home": "/", "rows": "/collections/rows", "answer": "/collections/rows?row=row-1&k=10",
    "wrong": "/collections/rows?row=row-1&filter=lines+%3E", "pictures": "/collections/pictures?q=a+red+shoe&k=10",
    "model": "/models/small", "child": "/models/last", "near": "/models/last/similar",
    "compared": "/models/last/similar?method=all", "verify": "/models/last/verify",
    "registry": "/registry", "shared": "/registry/shared", "differences": "/models/small/differences/last",
    "tensor": "/models/last/tensors/layer.0.weight",
    "state": "/state", "docs": "/docs", "key": "/key", "nothing": "/collections/none",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A service that listens. url: where; root: of its archives."""

    url: str
    root: Path
    services: Services


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Rows with markup, pictures behind a small random CLIP, a chain of three checkpoints, a run under way."""
    root = tmp_path_factory.mktemp("site")
    small = small_service(root)
    model, folder = clip(root / "clip"), root / "pictures"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.png").write_bytes(png(number))
    sets = [
        f"source.path={folder}",
        f"operators.0.model={model}",
        f"sink.path={root / 'archives'}",
        "sink.name=pictures",
    ]
    pictures = collection_service("pictures", run_here(load("images", sets)).url)
    encoder = open_encoder(str(model))
    assert isinstance(encoder, ClipEncoder)
    services = Services(
        small.collections | {"pictures": pictures}, small.models, encoders={"pictures": _encoding(encoder)}
    )
    first = archived_child(root, "first", services.models["small"].archive.url, 1)
    for name, url in (("first", first), ("last", archived_child(root, "last", first, 2))):
        services.models[name] = ModelService.open(name, url)
    under_way(root, 2)
    with listening(services) as url:
        yield Site(url, root, services)


def _encoding(encoder: ClipEncoder) -> Encoding:
    async def pictures(some: list[bytes]) -> Encoded:
        return Encoded(await asyncio.to_thread(encoder.encode_pictures, some), {})

    return Encoding(lambda some: asyncio.to_thread(encoder.encode, some), pictures)


def under_way(root: Path, done: int) -> None:
    """A run of four units, some of which are written."""
    place = Location(str(root / "archives" / "models" / "half"))
    tell(place, "archive", 4, "journal")
    for unit in range(done):
        place.write_atomic(f"journal/{unit:08d}-abc.json", b"{}")


class listening:
    """The service on a free port of loopback, in a thread."""

    def __init__(self, services: Services) -> None:
        config = uvicorn.Config(build_api(services), port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page of screen width; what it logs, and what it asks of other hosts, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=site.url)
    yield watched(context.new_page(), site)
    said = context.pages[0].said  # type: ignore[attr-defined]
    context.close()
    assert said == []


def watched(page: Any, site: Site) -> Any:
    page.said = []
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: (page.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith((site.url, "data:")) or page.said.append(request.url))
    page.on("console", lambda message: message.type in ("error", "warning") and page.said.append(message.text))
    return page


def until(page: Any, condition: str) -> None:
    """Wait for it. Playwright's own way evaluates text inside the page, which the page's policy forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && box.width && !e.closest('.scroll, pre, .skip, .unseen') && !e.closest('svg svg');
}).map((e) => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`)"""

# The contrast of WCAG 2, of every piece of text against the nearest ground that is painted behind it.
FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255; return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const owner = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || owner.closest('svg, video, option, script, .skip')) continue;
    let behind = owner;
    while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const ground = rgb(getComputedStyle(behind || document.documentElement).backgroundColor);
    const [a, b] = [light(rgb(getComputedStyle(owner).color)), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(walk.currentNode.textContent.trim().slice(0, 40));
  }
  return found;
}"""


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_fits_and_is_legible(browser: Any, site: Site, name: str) -> None:
    """No error in the console, nothing beyond the edge, every picture there, contrast of 4.5: light and dark."""
    shots, grounds = os.environ.get("HILBERTFLOW_SCREENSHOTS"), []
    for scheme in ("light", "dark"):
        context = browser.new_context(base_url=site.url, color_scheme=scheme, viewport={"width": 360, "height": 700})
        page = watched(context.new_page(), site)
        reply = page.goto(VIEWS[name], wait_until="networkidle")
        assert reply.status == {"wrong": 422, "nothing": 404}.get(name, 200)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), width
            assert page.evaluate(OVERFLOWING) == []
            if shots:
                page.screenshot(path=f"{shots}/{name}-{scheme}-{width}.png", full_page=True)
        assert page.evaluate(FAINT) == []
        page.evaluate("document.querySelectorAll('img').forEach((img) => (img.loading = 'eager'))")
        until(page, "[...document.images].every((img) => img.complete)")
        assert page.evaluate("[...document.images].filter((img) => !img.naturalWidth).map((img) => img.src)") == []
        expected = [text for text in page.said if "the server responded with a status" not in text]
        assert expected == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert grounds[0] != grounds[1]


def test_names_of_tensors_have_the_width_of_a_phone(browser: Any, site: Site) -> None:
    """None is squeezed into a column of some letters; what else is told stands below."""
    context = browser.new_context(base_url=site.url, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto("/models/small")
    row = page.locator("table.tensors tbody tr").first
    assert row.locator("th").bounding_box()["width"] > 300
    assert row.bounding_box()["height"] < 80
    context.close()


def test_search_by_keyboard_alone(page: Any) -> None:
    """The form has the focus; Enter asks; Tab reaches the rows; Enter on one asks for more like it."""
    page.goto("/collections/pictures")
    page.wait_for_selector("input[name=q]:focus")
    page.keyboard.type("a red shoe")
    page.keyboard.press("Enter")
    page.wait_for_selector("ol.hits")
    assert page.url.endswith("/collections/pictures?q=a+red+shoe&k=20")  # no empty fields
    assert page.locator("ol.hits > li").count() == 20
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("!!document.activeElement.closest('ol.hits')"):
            break
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring != "none"
    wanted = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector(".origin")
    assert wanted in page.inner_text(".origin")
    assert wanted not in page.inner_text("ol.hits")


def test_skip_link_is_the_first_stop(page: Any) -> None:
    page.goto("/models/small")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_search_by_a_picture(page: Any, site: Site) -> None:
    """Choosing it asks at once; its own row is the first answer, and it is shown beside the answers."""
    page.goto("/collections/pictures")
    page.set_input_files("#image", str(site.root / "pictures" / "07.png"))
    page.wait_for_selector("ol.hits img")
    assert page.inner_text("ol.hits > li:first-child a") == "07.png#0"
    assert page.evaluate("document.querySelector('.origin img').naturalWidth") > 0
    page.set_input_files("#image", [{"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"}])
    page.wait_for_selector("[role=alert]")
    page.said.clear()  # the 422


def test_it_works_without_scripts(browser: Any, site: Site) -> None:
    """Words, a picture, a filter, the table of tensors: forms and links alone."""
    context = browser.new_context(java_script_enabled=False, base_url=site.url)
    page = context.new_page()
    page.goto("/collections/pictures")
    page.fill("#q", "boot")
    assert not page.is_visible("#tier")
    page.click("summary")
    page.select_option("#tier", "exact")
    page.click("button:has-text('Search') >> nth=0")
    page.wait_for_selector("ol.hits")
    assert page.locator("ol.hits > li").count() == 20
    page.set_input_files("#image", str(site.root / "pictures" / "03.png"))
    page.click("text=Search by picture")
    page.wait_for_selector(".origin")
    assert page.inner_text("ol.hits > li:first-child a") == "03.png#0"
    page.goto("/models/small")
    page.fill("#find", "bias")
    page.click("text=Show")
    page.wait_for_url("**find=bias**")
    assert page.locator("section:has(#tensors) tbody tr").count() == 1
    context.close()


def test_markup_in_metadata_is_text(page: Any) -> None:
    """No element of it exists, no script of it runs (a dialog would fail the test)."""
    page.goto("/collections/rows?row=row-1")
    assert page.locator("ol.hits >> text=<script>alert(1)</script>").count() > 0
    assert page.locator("main script").count() == 0


def test_the_chain_plays(page: Any) -> None:
    """H.264 in a browser: frames are there, and time goes on."""
    page.goto("/models/last/tensors/layer.0.weight")
    page.evaluate("document.querySelector('video').play()")
    until(page, "document.querySelector('video').readyState >= 2 && document.querySelector('video').currentTime > 0.2")
    assert page.evaluate("document.querySelector('video').videoWidth") == 132
    page.evaluate("document.querySelector('video').currentTime = 1.2")  # by a range
    until(page, "!document.querySelector('video').seeking")


def test_the_treemap_leads_to_tensors(page: Any) -> None:
    """A box is a link, by mouse and by keyboard, and has an outline when it has the focus."""
    page.goto("/models/small")
    box = page.locator("svg.treemap.wide a").first
    box.focus()
    assert page.evaluate("getComputedStyle(document.activeElement.querySelector('rect')).strokeWidth") == "6px"
    page.keyboard.press("Enter")
    page.wait_for_url("**/models/small/tensors/layer.0.weight")


def test_relatives_are_found_behind_the_page(page: Any) -> None:
    """The model's own parent and its parent's parent, fetched when the page stands."""
    page.goto("/models/last")
    assert (
        page.get_attribute("section[aria-labelledby=levels] .hint a", "href") == "/models/small#levels"
    )  # not `first`
    page.wait_for_selector("section:has(#near) table")
    assert {"first", "small"} == set(page.locator("section:has(#near) tbody th").all_inner_texts())


def test_another_method_is_chosen_on_the_models_own_page(page: Any) -> None:
    """By the form, and all methods beside one another in the same place."""
    page.goto("/models/last")
    page.select_option("#method", "exact")
    page.click("section:has(#near) button")
    page.wait_for_selector("section:has(#near) p:has-text('cosine of all weights')")
    page.select_option("#method", "all")
    page.click("section:has(#near) button")
    page.wait_for_selector("section:has(#near) th:has-text('Rank correlation')")
    assert page.url.endswith("/models/last?near=all#near")


def test_a_check_is_followed_as_it_goes(page: Any, site: Site) -> None:
    """In the model's page: sound, then with a byte gone."""
    page.goto("/models/last")
    page.click("text=Recompute every checksum")
    page.wait_for_selector("section:has(#whole) .good")
    assert "all as they were written" in page.inner_text("section:has(#whole) .good")
    path = site.root / "archives" / "models" / "last" / "signature.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    try:
        page.reload()
        page.click("text=Recompute every checksum")
        page.wait_for_selector("section:has(#whole) .trouble")
        assert f"{len(data) - 1} bytes instead of {len(data)}" in page.inner_text("section:has(#whole) li")
    finally:
        path.write_bytes(data)


def test_the_state_follows_a_run(page: Any, site: Site) -> None:
    """Without a reload."""
    page.goto("/state")
    assert "2 of 4 units" in page.inner_text("main")
    under_way(site.root, 3)
    page.wait_for_selector("text=3 of 4 units", timeout=20_000)
    under_way(site.root, 2)


def test_a_key_is_given_in_the_browser(browser: Any, site: Site, tmp_path: Path) -> None:
    """The form leads back to the view; pictures load with the cookie; scripts cannot see it."""
    token, digest = new_key()
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: ann, sha256: {digest}, scopes: ['read:*']}}]")
    guarded = Services(site.services.collections, site.services.models, keys=Keys(str(tmp_path / "keys.yaml")))
    with listening(guarded) as url:
        context = browser.new_context(base_url=url)
        page = context.new_page()
        page.goto("/collections/pictures")
        assert "asks for a key" in page.inner_text("h1")
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        page.wait_for_selector(".thumb")
        assert page.url == f"{url}/collections/pictures"
        until(page, "document.querySelector('.thumb').naturalWidth > 0")
        assert page.evaluate("document.cookie") == ""
        context.close()
