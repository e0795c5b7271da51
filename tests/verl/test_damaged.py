"""Checkpoints of engine=verl that are not what was written: refused in a line before anything is changed. More of them by the fuzzer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrt.durable import write_manifest

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def resume(model_dir, tmp_path):
    """(what to do to the last checkpoint) → (exit status, what was said last, files before, files after) of a resume of the golden run."""

    def resumed(change):
        run = tmp_path / "run"
        shutil.copytree(GOLDEN / "verl" / "run", run)
        shutil.copytree(run / "base", tmp_path / "base")
        shutil.copy(GOLDEN / "verl" / "verl-pairs.jsonl", tmp_path / "pairs.jsonl")
        change(run / "checkpoints" / "step-000002")
        before = contents(run)
        command = [sys.executable, "-m", "nrt", "train", "resume=./run", "--json"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1], before, contents(run)

    return resumed


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_part_that_a_worker_cannot_read_under_hashes_that_fit(resume):
    """Of one of two workers: the other one does not wait for it."""

    def change(checkpoint):
        file = checkpoint / "verl" / "optim_world_size_2_rank_1.pt"
        file.write_bytes(file.read_bytes()[:-40])
        write_manifest(checkpoint)

    status, said, before, after = resume(change)
    assert status == 2, said
    assert "step-000002/verl cannot be read by verl's workers (" in said
    assert said.endswith("bring it back from a copy, or remove the checkpoint, and the one before it is taken")
    assert before == after


def test_the_local_engines_checkpoint_in_its_place(resume):
    def change(checkpoint):
        shutil.rmtree(checkpoint)
        shutil.copytree(GOLDEN / "folders" / "0.1.0" / "checkpoints" / "step-000002", checkpoint)

    status, said, before, after = resume(change)
    assert status == 2, said
    assert "has no extra_state_world_size_2_rank_0.pt, so it is not of engine=verl with 2 workers" in said
    assert before == after


@pytest.mark.parametrize("target", ["verl resumes", "verl parts"])
def test_it_works_or_is_refused_in_a_line(target):
    command = [sys.executable, str(Path(__file__).with_name("ours.py")), "tests.fuzz.long", "--only", target, "--dear", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout
