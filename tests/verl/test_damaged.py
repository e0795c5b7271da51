"""Damaged checkpoints of engine=verl: a run rejects them in one line before it changes a file.

The fuzzer makes more of them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrt.system.manifest import write_manifest

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def resume(model_dir, tmp_path):
    """(function that changes the last checkpoint) → the outcome of a resume of the golden run.

    The outcome is (exit status, last line of stderr, files before, files after).
    """

    def resume_changed(change):
        run = tmp_path / "run"
        shutil.copytree(GOLDEN / "verl" / "run", run)
        shutil.copytree(run / "base", tmp_path / "base")
        shutil.copy(GOLDEN / "verl" / "verl-pairs.jsonl", tmp_path / "pairs.jsonl")
        change(run / "checkpoints" / "step-000002")
        files_before = contents(run)
        command = [sys.executable, "-m", "nrt", "train", "resume=./run", "--json"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        process = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        lines = process.stderr.strip().splitlines() or [""]
        return process.returncode, lines[-1], files_before, contents(run)

    return resume_changed


def contents(folder):
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_a_cut_file_with_the_right_hash(resume):
    """The file of one of two workers; the other worker does not wait for it."""

    def change(checkpoint):
        file = checkpoint / "verl" / "optim_world_size_2_rank_1.pt"
        file.write_bytes(file.read_bytes()[:-40])
        write_manifest(checkpoint)

    status, message, files_before, files_after = resume(change)
    assert status == 2, message
    assert "step-000002/verl cannot be read by verl's workers (" in message
    fix = "restore it from a copy, or remove the checkpoint to resume from the one before it"
    assert message.endswith(fix)
    assert files_before == files_after


def test_a_checkpoint_of_the_local_engine(resume):
    def change(checkpoint):
        shutil.rmtree(checkpoint)
        shutil.copytree(GOLDEN / "folders" / "0.1.0" / "checkpoints" / "step-000002", checkpoint)

    status, message, files_before, files_after = resume(change)
    assert status == 2, message
    assert "has no extra_state_world_size_2_rank_0.pt, so it is not of engine=verl" in message
    assert files_before == files_after


@pytest.mark.parametrize("target", ["verl resumes", "verl parts"])
def test_fuzzed_checkpoints(target):
    """A resume works, or a one-line error rejects the checkpoint."""
    script = str(Path(__file__).with_name("ours.py"))
    command = [sys.executable, script, "tests.fuzz.long", "--only", target, "--dear", "40"]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert process.returncode == 0, process.stdout
