"""Two real processes and one run folder: the second is refused while the first lives, and goes on with the run when that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import nrt
from nrt.errors import InputError
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_the_second_is_refused_until_the_first_is_dead(make_config, tmp_path, caplog):  # noqa: F811
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(make_config(steps=10**6, save_every=0, eval_every=0).model_dump(mode="json"))
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, "-m", "nrt", "train", str(recipe)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(steps(run)) < 3:
            time.sleep(0.05)
        for resume in (None, str(run)):
            with pytest.raises(
                InputError,
                match=f"process {first.pid} on {socket.gethostname()} is using {run}; wait for it",
            ):
                nrt.train(make_config(steps=2, resume=resume))
        before = len(steps(run))
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert len(steps(run)) >= before, "the refused ones must not touch the files"
    again = nrt.train(make_config(steps=2, resume=str(run)))
    assert f"took over the lock of process {first.pid}, which has ended" in caplog.text
    assert again.environment[-1]["replaced_lock"]["pid"] == first.pid
    assert steps(run) == [0, 1, 2]


def steps(run):
    return (
        [record["step"] for record in nrt.load_run(run).metrics()]
        if (run / "config.yaml").exists()
        else []
    )
