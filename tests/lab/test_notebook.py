"""The notebooks run from top to bottom, the miniature with a base model of a few steps."""

import os
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nrt.lab import BaseSettings, build_base

EXAMPLES = Path(__file__).parents[2] / "examples"
FILE = EXAMPLES / "miniature.ipynb"
PRETRAINED = EXAMPLES / "smollm2.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(FILE, as_version=4)
    replacements = {
        "STEPS = 120": "STEPS = 2",
        '"eval_every=0"': '"eval_every=0", "heldout.rows=15"',
    }
    for original, replacement in replacements.items():
        (cell,) = (cell for cell in notebook.cells if original in cell.source)
        cell.source = cell.source.replace(original, replacement)
    _cache_quick_base(tmp_path / "cache" / "lab")
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    _execute(notebook, tmp_path, monkeypatch)
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_notebook_of_the_pretrained_model_runs(monkeypatch):
    """It reads the committed run, and shows its accuracies."""
    notebook = nbformat.read(PRETRAINED, as_version=4)
    _execute(notebook, EXAMPLES, monkeypatch)
    texts = [output.data["text/plain"] for cell in notebook.cells for output in _results(cell)]
    (table,) = (text for text in texts if "an empty trace" in text)
    assert table.splitlines()[-1].split() == ["count3", "1.0", "0.0", "0.03"]


@pytest.mark.parametrize("file", [FILE, PRETRAINED])
def test_the_committed_outputs_are_small(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.stat().st_size < 200_000
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


def _execute(notebook, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    source = str(EXAMPLES.parent / "src")
    python_path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", python_path)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources).execute()


def _results(cell):
    return [o for o in cell.get("outputs", []) if o.output_type == "execute_result"]


def _cache_quick_base(folder: Path) -> None:
    """Cache a base model of a few steps under the name of seed 0's base model."""
    settings = BaseSettings()
    stages = tuple(replace(stage, steps=2) for stage in settings.stages)
    quick = replace(settings, stages=stages)
    build_base(quick, cache=folder).rename(folder / settings.name)
