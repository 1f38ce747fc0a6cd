"""The notebook among the examples runs from its first cell to its last, and shows what it says it shows."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"


@pytest.fixture
def kernel_environment(tmp_path, monkeypatch):
    """A kernel of this Python, whose runs land in the folder of the test."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    subprocess.run(
        [sys.executable, "-m", "ipykernel", "install", "--prefix", str(tmp_path), "--name", "klimb-test"],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    return {**os.environ}


def outputs_of(cell, kind):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_and_shows_curves_a_report_and_a_verdict(
    kernel_environment, model_folder, tmp_path
):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f"import klimb\n\nMODEL = {str(model_folder)!r}\nNUM_STEPS = 2"
    client = NotebookClient(
        notebook, kernel_name="klimb-test", timeout=200, resources={"metadata": {"path": tmp_path}}
    )
    try:
        client.execute(env=kernel_environment)
    except CellExecutionError as error:
        pytest.fail(str(error))
    training, compared = (
        next(cell for cell in notebook.cells if cell.cell_type == "code" and start in cell.source)
        for start in ("klimb.train(", "klimb.compare(")
    )
    report = next(cell for cell in notebook.cells if cell.source == "run")
    (shown,) = outputs_of(training, "text/html")[:1]
    assert "step 2 of 2" in shown
    assert "<svg" in shown
    lines = [output["text"] for output in training.outputs if output.output_type == "stream"]
    assert all("IProgress not found" in text for text in lines)  # of tqdm, where ipywidgets is not installed
    assert "<iframe" in outputs_of(report, "text/html")[0]
    assert (
        "wins" in outputs_of(compared, "text/plain")[0] or "nothing" in outputs_of(compared, "text/plain")[0]
    )


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(
        not cell.outputs and cell.execution_count is None
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
