"""Updates with a loss that is not finite, on two workers as a user starts them.

They are skipped, their batches are kept and can be replayed, and too many in a row end the run.
"""

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
from nrt.trainer import replay

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]

PLUGIN = Path(__file__).parents[1] / "trainer" / "breaks.py"
"""Plugin whose reward is NaN for a long answer."""

LONG = (2, 6, 8)
"""Rows with a long answer; steps 2, 4 and 5 train on them."""


@pytest.fixture(scope="module")
def ended(model_dir, tmp_path_factory):
    """(run, exit status, last line of stderr) of five steps of two rows, with max_skipped=2."""
    folder = tmp_path_factory.mktemp("skips")
    shutil.copy(PLUGIN, folder)
    lines = []
    for i in range(10):
        question = f"what is {['one', 'two'][i % 2]} ?"
        answer = "the sum is so two" if i in LONG else "two"
        lines.append(json.dumps({"question": question, "answer": answer}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    settings = [
        f"model={model_dir}",
        f"data.train={folder / 'rows.jsonl'}",
        "data.answer=whole",
        "data.shuffle=false",
        "method=breaks",
        "plugins=breaks",
        "run=r",
        "engine=verl",
        "gpus_per_node=2",
        "device=cpu",
        "threads=1",
        "batch=2",
        "steps=5",
        "traces=3",
        "max_trace_tokens=5",
        "max_answer_tokens=8",
        "max_prompt_tokens=16",
        "updates_per_rollout=1",
        "eval_every=0",
        "save_every=1",
        "keep=9",
        "max_skipped=2",
        "optimizer.lr=1e-3",
    ]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], str(folder)])
    process = subprocess.run(
        [sys.executable, "-m", "nrt", "train", "gsm8k", *settings, "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    errors = process.stderr.strip().splitlines() or [""]
    return Run(folder / "runs" / "r"), process.returncode, errors[-1]


def test_updates_are_skipped_counted_and_kept(ended):
    run, _, _ = ended
    assert [record["guard/skipped"] for record in run.metrics()] == [0, 1, 0, 1]
    assert [record["optim/updates"] for record in run.metrics()] == [1, 1, 2, 2]
    files = [warning["file"] for warning in run.warnings() if "file" in warning]
    assert files == [f"skipped/step-00000{step}.json" for step in (2, 4, 5)]
    batch = json.loads((run.path / "skipped" / "step-000002.json").read_text())
    assert (batch["loss"]["total"], batch["loss"]["grad_norm"]) == ("nan", "nan")
    assert batch["checkpoint"] == "step-000001"
    first, second, third = (
        load_file(folder / "model" / "model.safetensors") for folder in run.checkpoints()[:3]
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert not all(torch.equal(second[name], tensor) for name, tensor in third.items())
    assert all(tensor.isfinite().all() for tensor in third.values())


def test_too_many_in_a_row_end_the_run(ended):
    run, status, message = ended
    assert status == 1
    assert message.startswith("error: max_skipped=2 updates in a row")
    assert "in step 5;" in message
    names = [folder.name for folder in run.checkpoints()]
    assert names == [f"step-00000{step}" for step in (1, 2, 3, 4)]


def test_a_skipped_batch_is_replayed_without_the_cluster(ended, monkeypatch):
    run, _, _ = ended
    monkeypatch.syspath_prepend(run.path.parents[1])
    lines = []
    try:
        findings = replay(run.path / "skipped" / "step-000002.json", say=lines.append)
    finally:
        METHODS.pop("breaks", None)
    assert str(run.checkpoints()[0]) in lines[0]
    assert findings[0] == "reward of trace 1 of rows.jsonl:3, as it was saved: nan"
    assert {"loss, trace: nan", "loss, total: nan"} <= set(findings)
    for finding in findings:
        assert "rows.jsonl:4" not in finding
        assert not finding.startswith(("weight", "log-prob"))
    assert any(finding.startswith("gradient of ") for finding in findings)
