"""The notebook runs from top to bottom on a base model of a few steps; what it shows of the effect, `make test-slow` holds elsewhere."""

import os
from dataclasses import replace
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from nrt.lab import BaseSettings, build_base

FILE = Path(__file__).parents[2] / "examples" / "miniature.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(FILE, as_version=4)
    for there, here in (("STEPS = 120", "STEPS = 2"), ('"eval_every=0"', '"eval_every=0", "heldout.rows=15"')):
        (cell,) = (cell for cell in notebook.cells if there in cell.source)
        cell.source = cell.source.replace(there, here)
    _stand_in(tmp_path / "cache" / "lab")
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FILE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_outputs_that_are_kept_are_small():
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    assert FILE.stat().st_size < 200_000
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


def _stand_in(folder: Path) -> None:
    """A base model of a few steps, where the notebook will look for that of seed 0."""
    settings = BaseSettings()
    quick = replace(settings, stages=tuple(replace(stage, steps=2) for stage in settings.stages))
    build_base(quick, cache=folder).rename(folder / settings.name)
