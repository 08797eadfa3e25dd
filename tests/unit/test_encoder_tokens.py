"""A text embeds alike as a row, as a query of the command line and as a query of the service: cut at the same token."""

from __future__ import annotations

from pathlib import Path

from cluster.config import parse_config
from cluster.serve_app import encoder_users
from cluster.service import CollectionService
from pipelines.recipe import load
from pipelines.run import run_here
from storage.collection import CollectionArchive
from tests.collection_fixtures import archive_vectors, clustered
from tests.model_fixtures import bert


def test_queries_are_cut_where_rows_were(tmp_path: Path) -> None:
    model, folder = bert(tmp_path / "model"), tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the red coat. " * 10)
    sets = [f"source.path={folder}", f"sink.path={tmp_path / 'root'}", f"operators.0.model={model}", "index=null"]
    made = run_here(load("documents", [*sets, "operators.0.max_tokens=5"]))
    assert CollectionArchive.at(made.url).encoder_tokens == 5
    plain = archive_vectors(tmp_path, clustered(20, 32), "ip")
    assert CollectionArchive.at(plain).encoder_tokens == 0
    rows, known = {"name": "rows", "url": made.url}, {"model": str(model)}
    others = [
        {"name": "plain", "url": plain},
        {
            "name": "short",
            "url": archive_vectors(tmp_path / "short", clustered(20, 8), "ip"),
        },  # no vectors of this model
        {"name": "longer", "url": made.url, "encoder": known | {"max_tokens": 7}},
    ]
    users = encoder_users(parse_config({"collections": [rows, *others], "encoder": known}))
    assert sorted((tokens, *names) for (_, tokens), names in users.items()) == [
        (0, "plain"), (5, "rows"), (7, "longer"),
    ]  # fmt: skip


def test_thumbnails_can_be_left_out(tmp_path: Path) -> None:
    rows = CollectionArchive.at(archive_vectors(tmp_path, clustered(20, 8), "ip"))
    rows.manifest.recipe["source"] = {"kind": "images", "path": str(tmp_path)}
    assert CollectionService("rows", rows, {}, []).thumbnails is not None
    assert CollectionService("rows", rows, {}, [], thumbnails=False).thumbnails is None
    assert not parse_config({"collections": [{"name": "a", "url": "b", "thumbnails": False}]}).collections[0].thumbnails
