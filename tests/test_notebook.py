"""The example notebook runs and reproduces its outputs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"


def texts_of(notebook: Any) -> list[str]:
    """Return the text outputs of all cells, without those of pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
        for output in outputs
        if "image/png" not in output.get("data", {})
    ]


@pytest.mark.slow
def test_notebook_reproduces_its_outputs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    shown = texts_of(notebook)
    assert len(shown) == 6
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert texts_of(notebook) == shown
    assert (tmp_path / "results").is_dir()
