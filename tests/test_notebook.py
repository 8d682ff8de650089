"""The notebook in examples/: its outputs are stored, and it runs."""

import json

import pytest

from training.report import ROOT

PATH = ROOT / "examples" / "linearconv.ipynb"
STATED = ("227,418 parameters", "after the conversion", "of dense", "largest relative error", "network: True")


def printed(notebook):
    """All text that the code cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs)


def test_the_outputs_of_the_notebook_are_stored():
    notebook = json.loads(PATH.read_text())
    numbers = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(text in printed(notebook) for text in STATED)


@pytest.mark.slow
def test_the_notebook_runs():
    for package in ("ipykernel", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": PATH.parent}}).execute()
    assert all(text in printed(notebook) for text in STATED)
