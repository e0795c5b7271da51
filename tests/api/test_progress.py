"""Progress of `nrt.train`: in a real notebook, in a log, and nowhere."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import nrt
from nrt.api.live import JsonLines
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_a_notebook_shows_live_progress(make_config, tmp_path, monkeypatch):  # noqa: F811
    config = make_config()
    cell = f"import nrt\nrun = nrt.train(nrt.Config.model_validate({config.model_dump()!r}))\nrun"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    )
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for output in notebook.cells[0].outputs if output.output_type != "stream"]
    progress, summary = (output["data"]["text/html"] for output in outputs)
    assert '<progress value="3" max="3">' in progress
    assert "step 3/3" in progress
    assert "<th>accuracy</th>" in progress
    assert progress.count("<tr>") == 1 + 3, "one row for each evaluation"
    assert "run folder: " in progress
    assert "<td>finished</td>" in summary


@pytest.mark.parametrize(("progress", "lines"), [(True, True), ("auto", True), (False, False)])
def test_a_log_has_lines_unless_refused(make_config, capsys, progress, lines):  # noqa: F811
    nrt.train(make_config(), progress=progress)
    out = capsys.readouterr().out
    assert ("step 3/3" in out) == lines
    assert bool(out) == lines


def test_json_lines_are_json_also_without_a_finite_value(capsys):
    JsonLines().step({"step": 3, "loss/total": float("nan")})
    assert json.loads(capsys.readouterr().out) == {"step": 3, "loss/total": None}
