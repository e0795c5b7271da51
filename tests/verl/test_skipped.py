"""Updates that are not finite, on two workers as a user starts them: skipped, kept, replayed, and the end of the run where they go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nrt.objective import METHODS
from nrt.run import Run
from nrt.training import replay

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]

PLUGIN = Path(__file__).parents[1] / "training" / "breaks.py"
"""Its reward is NaN where an answer is long."""

LONG = (2, 6, 8)
"""Rows with a long answer: of steps 2, 4 and 5."""


@pytest.fixture(scope="module")
def ended(model_dir, tmp_path_factory):
    """(run, exit status, what it said last) of five steps of two rows, of which two in a row may be skipped."""
    folder = tmp_path_factory.mktemp("skips")
    shutil.copy(PLUGIN, folder)
    rows = [{"question": f"what is {['one', 'two'][i % 2]} ?", "answer": "the sum is so two" if i in LONG else "two"} for i in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = [
        f"model={model_dir}", f"data.train={folder / 'rows.jsonl'}", "data.answer=whole", "data.shuffle=false",
        "method=breaks", "plugins=breaks", "run=r", "engine=verl", "gpus_per_node=2", "device=cpu", "threads=1", "batch=2",
        "steps=5", "traces=3", "max_trace_tokens=5", "max_answer_tokens=8",
        "max_prompt_tokens=16", "updates_per_rollout=1", "eval_every=0", "save_every=1", "keep=9", "max_skipped=2", "optimizer.lr=1e-3",
    ]  # fmt: skip
    workers = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(folder)])}
    command = [sys.executable, "-m", "nrt", "train", "gsm8k", *settings, "--json"]
    done = subprocess.run(command, cwd=folder, env=workers, capture_output=True, text=True, timeout=500, check=False)
    return Run(folder / "runs" / "r"), done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def test_they_are_skipped_counted_and_kept(ended):
    run, _, _ = ended
    assert [record["guard/skipped"] for record in run.metrics()] == [0, 1, 0, 1]
    assert [record["optim/updates"] for record in run.metrics()] == [1, 1, 2, 2]
    assert [w["file"] for w in run.warnings()] == [f"skipped/step-00000{step}.json" for step in (2, 4, 5)]
    batch = json.loads((run.path / "skipped" / "step-000002.json").read_text())
    assert (batch["loss"]["total"], batch["loss"]["grad_norm"], batch["checkpoint"]) == ("nan", "nan", "step-000001")
    first, second, third = (load_file(folder / "model" / "model.safetensors") for folder in run.checkpoints()[:3])
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert not all(torch.equal(second[name], tensor) for name, tensor in third.items())
    assert all(tensor.isfinite().all() for tensor in third.values())


def test_too_many_in_a_row_end_the_run(ended):
    run, status, said = ended
    assert status == 1
    assert said.startswith("error: max_skipped=2 updates in a row")
    assert "in step 5;" in said
    assert [folder.name for folder in run.checkpoints()] == [f"step-00000{step}" for step in (1, 2, 3, 4)]


def test_one_is_replayed_without_the_cluster(ended, monkeypatch):
    run, _, _ = ended
    monkeypatch.syspath_prepend(run.path.parents[1])
    said = []
    try:
        found = replay(run.path / "skipped" / "step-000002.json", say=said.append)
    finally:
        METHODS.pop("breaks", None)
    assert str(run.checkpoints()[0]) in said[0]
    assert found[0] == "reward of trace 1 of rows.jsonl:3, as it was given: nan"
    assert {"loss, trace: nan", "loss, total: nan"} <= set(found)
    assert not any("rows.jsonl:4" in finding or finding.startswith(("weight", "log-prob")) for finding in found)
    assert any(finding.startswith("gradient of ") for finding in found)
