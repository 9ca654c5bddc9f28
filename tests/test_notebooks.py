"""Every notebook runs from top to bottom, and is committed with its output."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv("SALIENCY_LAB_PROGRESS", "0")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "committed without its output: run `make notebooks`"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors
