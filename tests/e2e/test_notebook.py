"""The notebook that a reader opens first runs from its first cell to its last."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import nbformat
import pytest

from tests.unit.data.places import FASHION

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_steps.ipynb"
ROOT = NOTEBOOK.parents[1]


@pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter's own: paths, and sockets that it leaves to the collector
        from nbclient import NotebookClient

        notebook = nbformat.read(NOTEBOOK, as_version=4)
        place = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=240, resources=place).execute()
    said = {cell["id"]: cell for cell in notebook.cells if cell["cell_type"] == "code"}
    texts = [str(output.get("data", {}).get("text/plain", "")) for c in said.values() for output in c["outputs"]]
    assert any("TrainedStage('quickstart:student', done" in text for text in texts)
    assert any(text.startswith("Distilled(Tiny: ") for text in texts)
    assert any("<pre" in str(o.get("data", {}).get("text/html", "")) for c in said.values() for o in c["outputs"])
    assert any("image/png" in output.get("data", {}) for c in said.values() for output in c["outputs"])
