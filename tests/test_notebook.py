"""docs/quickstart.ipynb: it runs, with tiny settings, and is stored without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TINY = "--total_epoch 1 --image_width 32 --per_class 20 --threads 1 --gpu_ids -1"


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)


def test_notebook_is_stored_without_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_notebook_runs(notebook):
    parameters = notebook.cells[2]
    assert 'TRAINING_OPTIONS = ""' in parameters.source
    parameters.source += f"\nTRAINING_OPTIONS, IMAGES_PER_CLASS = {TINY!r}, 6"
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}
    )
    client.execute()  # raises CellExecutionError for a cell that fails
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert text.count("figures, predictions and weights are in") == 2
    assert "classes  happy, surprise, calm" in text
    assert "classes happy, surprise; new: classes calm" in text
    assert "calm: predicted" in text
    assert len(images) == 5
    assert "error" not in json.dumps([output.output_type for output in outputs])
