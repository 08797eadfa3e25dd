"""`parent: auto`: the archived model that a checkpoint comes from, and what it saves; none where none is near."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from operators.relation import difference
from pipelines import choose_parent
from pipelines.bench import zoo_derive as derive
from pipelines.cli import call
from pipelines.compile import make_plan
from pipelines.recipe import Recipe, load
from pipelines.run import Report, run_here
from pipelines.run_page import _facts
from storage import archive, signatures
from storage.checkpoint import open_checkpoint
from storage.spec import open_for_writing
from tests.archived_model import Arrays
from tests.unit.test_run_page import a_run
from tests.unit.test_signature import state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of a model, its fine-tune, one of the same architecture that is a stranger, and one of another."""
    root = tmp_path_factory.mktemp("parents")
    wide = {name: np.tile(value, (2, 1)) if value.ndim > 1 else value for name, value in state(1).items()}
    for name, values in (("base", state(1)), ("tuned", derive.noised(state(1), 0.1, 5)), ("stranger", state(2)),
                         ("wide", wide)):  # fmt: skip
        run_here(recipe(root, name, values))
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def recipe(root: Path, name: str, values: Arrays, *more: str) -> Recipe:
    save_file(values, root / f"{name}.safetensors")
    sets = [f"source.path={root / name}.safetensors", f"sink.path={root / 'archives'}", f"sink.name={name}",
            "operators.4.coder=rans", "operators.1.layout=raster", "operators.2.method=uniform", *more]  # fmt: skip
    return load("quickstart-model", sets)


def size(report: Report) -> int:
    assert report.manifest is not None
    return sum(report.manifest.levels.values())


def test_the_nearest_is_the_parent_and_saves_what_it_says(root: Path) -> None:
    """A step of training beyond the fine-tune: by it, less than by the base, and far less than alone; bit for bit."""
    values = derive.noised(derive.noised(state(1), 0.1, 5), 0.01, 9)
    chosen = run_here(recipe(root, "auto", values, "parent=auto"))
    alone = run_here(recipe(root, "alone", values))
    by_base = run_here(recipe(root, "by-base", values, f"parent={root}/archives/models/base"))
    assert chosen.plan.parent["name"] == "tuned" and chosen.plan.parent["candidates"] == 3
    assert "of 3 models of its architecture differs least: by 0.0" in chosen.plan.parent["why"]
    assert chosen.plan.parent["difference"] == pytest.approx(0.01, rel=0.3)
    assert size(chosen) < 0.9 * size(by_base) < 0.85 * size(alone)
    handle = archive.open(chosen.url)
    assert handle.link.url.endswith("/archives/models/tuned")
    assert all(np.array_equal(handle[name].read(), value) for name, value in values.items())


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([(0.05, "a")], "a, the only model of its architecture, differs by 0.0500 of its length, told from 1 matrix"),
        (
            [(0.05, "a"), (0.1, "b")],
            "a, which of 2 models of its architecture differs least: by 0.0500 of its length, told from 1 matrix "
            "(next: b, 0.1000)",
        ),
        (
            [(0.5, "a")],
            "none: the only model of its architecture, a, differs by 0.500 of its length, and 0.25 is the most",
        ),
        (
            [(0.5, "a"), (1, "b")],
            "none: of 2 models of its architecture the nearest, a, differs by 0.500 of its length, "
            "and 0.25 is the most",
        ),
        ([(float("inf"), "a")], "none: it shares no matrix with the signatures of the models of its architecture"),
    ],
)
def test_the_reason_in_words(told: list[tuple[float, str]], why: str) -> None:
    """Of one candidate no one says that it is the least of one; what was not compared differs by no number."""
    assert choose_parent.reason(told, 1) == why


def test_without_a_near_one_it_is_archived_alone(root: Path) -> None:
    """The bytes of a recipe without a parent: beside a stranger, without one of its architecture, in a new root."""
    values = state(7)
    far, alone = run_here(recipe(root, "far", values, "parent=auto")), run_here(recipe(root, "alone", values))
    assert "differs by 1." in far.plan.parent["why"] and far.plan.parent["name"] == ""
    assert far.manifest is not None and alone.manifest is not None
    assert far.manifest.recipe_hash == alone.manifest.recipe_hash and far.manifest.levels == alone.manifest.levels
    assert archive.open(far.url).link is None
    lone = run_here(recipe(root, "lone", {"conv.weight": state(1)[next(iter(state(1)))]}, "parent=auto"))
    assert lone.plan.parent["why"].startswith("none: no other model")
    first = make_plan(recipe(root, "first", values, "parent=auto", f"sink.path={root}/new"))
    assert first.parent["candidates"] == 0 and first.recipe.parent is None


def test_another_dtype_is_no_candidate(root: Path) -> None:
    halves = {name: value.astype(np.float16) for name, value in state(1).items()}
    assert make_plan(recipe(root, "half", halves, "parent=auto")).parent["candidates"] == 0


def test_a_choice_that_was_made_stays(root: Path) -> None:
    """Of a run that goes on, though a nearer one came meanwhile; of a finished one, and after the root was moved."""
    values = derive.noised(state(1), 0.05, 3)
    auto = recipe(root, "child", values, "parent=auto")
    plan = make_plan(auto)
    assert plan.parent["name"] == "base"
    open_for_writing(plan.spec)  # as far as a killed run may come
    run_here(recipe(root, "nearer", derive.noised(values, 0.001, 4)))
    assert make_plan(recipe(root, "other-name", values, "parent=auto")).parent["name"] == "nearer"
    went_on = run_here(auto)
    assert went_on.plan.spec.identity == plan.spec.identity and went_on.written
    assert went_on.plan.parent["why"] == "base, as when this archive was begun"
    again = run_here(auto)
    assert (again.written, again.plan.parent["name"]) == (0, "base")
    moved = root / "moved"
    (root / "archives").rename(moved)
    after = run_here(recipe(root, "child", values, "parent=auto", f"sink.path={moved}"))
    assert after.written == 0 and after.plan.recipe.parent is not None
    assert after.plan.recipe.parent.path == str(moved / "models" / "base")


def test_one_that_was_begun_alone_goes_on_alone(root: Path) -> None:
    values = derive.noised(state(1), 0.05, 3)
    open_for_writing(make_plan(recipe(root, "child", values)).spec)
    report = run_here(recipe(root, "child", values, "parent=auto"))
    assert report.written and report.plan.parent["why"] == "none, as when this archive was begun"


def test_it_reads_few_matrices_and_no_other_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is told as signatures of the whole tell it; levels of the candidates may be gone."""
    monkeypatch.setattr(choose_parent, "SAMPLE", 100_000)
    for name in ("base", "tuned", "stranger"):
        for level in ("level0", "level1", "exact"):
            for path in (root / "archives" / "models" / name / level).rglob("c*"):
                shutil.rmtree(path) if path.is_dir() else None
    values = derive.noised(state(1), 0.05, 3)
    told = make_plan(recipe(root, "child", values, "parent=auto")).parent
    sizes = {name: value.nbytes for name, value in values.items()}
    assert 0 < sum(sizes[name] for name in told["matrices"]) <= 100_000 and told["name"] == "base"
    own = signatures.of_checkpoint(open_checkpoint(str(root / "child.safetensors")))
    base = signatures.of_archive(archive.open(str(root / "archives" / "models" / "base")))
    assert told["difference"] == pytest.approx(difference(own, base), rel=0.2)


def test_the_command_says_which_and_why(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(root, "child", derive.noised(state(1), 0.05, 3))
    sets = [f"source.path={root}/child.safetensors", f"sink.path={root}/archives", "sink.name=child", "parent=auto",
            "operators.4.coder=rans", "operators.1.layout=raster", "operators.2.method=uniform"]  # fmt: skip
    arguments = ["run", "quickstart-model", *(word for one in sets for word in ("--set", one)), "--dry-run"]
    assert call(arguments) == 0
    assert "parent: base, which of 3 models of its architecture differs least" in capsys.readouterr().out
    assert call([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parent"]["name"] == "base"


def test_the_page_of_a_run_says_so() -> None:
    run = dataclasses.replace(a_run(), parent={"name": "base", "why": "base, which of 3 models …"})
    assert ("parent", "base", "base, which of 3 models …") in _facts(run)
    none = dataclasses.replace(a_run(), parent={"name": "", "why": "none: …"})
    assert ("parent", "none", "none: …") in _facts(none) and "parent" not in {name for name, *_ in _facts(a_run())}


def test_a_folder_called_auto_can_be_named() -> None:
    parent = load("quickstart-model", ["parent=./auto", "source.path=."], inputs=False).parent
    assert parent is not None and not parent.automatic
    chain = load("quickstart-model", ["parent.path=auto", "parent.max_chain=3", "source.path=."], inputs=False).parent
    assert chain is not None and chain.automatic and chain.max_chain == 3
