"""The notebooks run from the first cell to the last, and are committed without what a run leaves in them."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
EXTRA = "--max_steps 6 --sensitivity none --max_test_samples 40"
# What each says where, once it has run: cell -> words.
SHOWN = {
    "quickstart": {"run-check": "Ready to train.", "run-evaluate": "pcam", "ask-both": "truth: "},
    "your_own_patches": {
        "count": "Invasive: ",
        "write-recipe": "InSitu: InSitu",
        "run-evaluate": "my_patches",
        "ask-both": "truth: ",
    },
}


def read(path):
    return nbformat.read(path, as_version=4)


def find_tagged(notebook, tag):
    return next(cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))


def collect_output(cell):
    return "".join(output.get("text", "") or str(output.get("data", "")) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs_and_no_trace_of_a_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in notebook.cells if set(cell.metadata) - {"tags"}] == []
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_is_short_and_is_explained(path):
    notebook = read(path)
    assert all(len(cell.source.splitlines()) <= 20 for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.cells[0].cell_type == "markdown"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_files_and_extras_that_exist(path):
    text = "\n".join(cell.source for cell in read(path).cells)
    named = set(re.findall(r"\b(?:recipes|accelerate_configs|docs)/\w+\.\w+", text))
    assert named and [name for name in named if not Path(name).is_file()] == []
    setup = Path("setup.py").read_text(encoding="utf-8")
    extras = find_tagged(read(path), "install").source.split('".[')[1].split("]")[0].split(",")
    assert [extra for extra in extras if f'"{extra}": [' not in setup] == []


@pytest.mark.model
@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, tmp_path, monkeypatch):
    for name in ("recipes", "histolab_sft", "accelerate_configs"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = read(path)
    # What this machine has installed already, and what makes the run short.
    find_tagged(notebook, "install").source = ""
    find_tagged(notebook, "parameters").source += f'\nos.environ["ARGS"] = "{EXTRA}"\n'
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    for name, words in SHOWN[path.stem].items():
        assert words in collect_output(cells[name])
    # The report stands inside the notebook, with its pictures.
    assert "<iframe srcdoc=" in collect_output(cells["show-report"])
    assert "data:image/svg+xml" in collect_output(cells["show-report"])
    assert any("image/png" in output.get("data", {}) for output in cells["ask-both"].outputs)
