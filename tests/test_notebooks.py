"""Every notebook runs from top to bottom, and is committed with its output."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


SLOW = {"06_photographs"}
"""Notebooks that take more than a minute; tests of pretrained networks and photographs are quicker."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else pytest.mark.long, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv("SALIENCY_LAB_PROGRESS", "0")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "committed without its output: run `make notebooks`"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    noise = [
        o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
    assert not noise


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_output_is_clean_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = "".join(str(o.get("text", o.get("data", {}).get("text/plain"))) for o in outputs)
    assert not re.search(r"/(home|root|tmp|usr|work)/", text), "an absolute path of somebody's machine"
    assert path.stat().st_size < 3_000_000  # photographs at twice the density of a screen take this much
