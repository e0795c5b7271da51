"""`torchrun -m nrt train …` for real: who writes and speaks, a signal to one process, a process that fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import nrt
from nrt.cli.app import main
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401
from tests.trainer.test_several import assert_like
from tests.trainer.test_train import assert_same_run

ROOT = Path(__file__).parents[1]
PATIENCE = 120
"""Seconds for a start."""


@pytest.fixture
def torchrun(make_config, tmp_path):  # noqa: F811
    """torchrun("--json", **settings) → two processes (or `processes`) of `nrt train` on the tiny model, started and not waited for."""
    started = []

    def start(*options, processes=2, **settings):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(make_config(**settings).model_dump(mode="json")))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
        command += ["-m", "nrt", "train", str(recipe), *options]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # torchrun ends its own
            process.communicate(timeout=60)


def worker(process, rank):
    """The pid of a process that torchrun started."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which process is which")
def test_a_signal_to_one_process_stops_all(torchrun, make_config, tmp_path):  # noqa: F811
    """A checkpoint, status 130, one message; and one process goes on from it."""
    folder = tmp_path / "run"
    process = torchrun("--json", steps=10**6, eval_every=0, save_every=0, parallel="fsdp")
    wait_for(
        lambda: (folder / "metrics.jsonl").is_file() and len(nrt.load_run(folder).metrics()) > 2,
        process,
    )
    os.kill(worker(process, 1), signal.SIGINT)
    out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0] == {"run": str(folder), "step": 0, "steps": 10**6}
    assert [line["step"] for line in lines[1:]] == list(range(len(lines) - 1)), "one process speaks"
    assert err.count("interrupted: stopped at step") == 1
    assert err.count("2 processes: each process holds a part") == 1
    assert "130" in re.findall(
        r"exitcode +: (-?\d+)", err
    )  # of whoever is first; torchrun may end the other while it leaves
    assert not (folder / "lock").exists()
    last = lines[-1]["step"]
    assert [path.name for path in nrt.load_run(folder).checkpoints()] == [f"step-{last:06d}"]
    config = nrt.load_run(folder).config.model_copy(
        update={"resume": str(folder), "steps": last + 1}
    )
    assert nrt.train(config).metrics()[-1]["step"] == last + 1


@pytest.mark.slow  # six starts, each of which imports everything
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which process is which")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_killed_and_resumed(torchrun, make_config, tmp_path, parallel):  # noqa: F811
    """One of two is killed: the other and torchrun end by themselves. In two again the run is the uninterrupted one bit for bit; in three,
    and in one, but for rounding."""
    settings = {
        "steps": 12,
        "batch": 3,
        "log_traces": 9,
        "heldout.rows": 5,
        "save_every": 3,
        "keep": 9,
        "parallel": parallel,
    }
    _, err = (process := torchrun(run=str(tmp_path / "whole"), **settings)).communicate(
        timeout=PATIENCE
    )
    assert process.returncode == 0, err
    expected = nrt.load_run(tmp_path / "whole")
    for rank, processes in ((1, 2), (0, 3), (1, 1)):
        name = f"killed-{rank}-{processes}"
        process = torchrun(run=str(tmp_path / name), **settings)
        file = tmp_path / name / "metrics.jsonl"
        wait_for(lambda file=file: file.is_file() and file.read_text().count("\n") > 4, process)
        os.kill(worker(process, rank), signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "(SIGKILL)" in err, "torchrun names it"
        again = torchrun(
            run=str(tmp_path / name), resume=str(tmp_path / name), processes=processes, **settings
        )
        _, err = again.communicate(timeout=PATIENCE)
        assert again.returncode == 0, err
        found = nrt.load_run(tmp_path / name)
        (assert_same_run if processes == 2 else assert_like)(found, expected)
        assert [entry["processes"] for entry in found.environment] == [2, processes]


def test_a_process_that_fails_ends_the_others(torchrun):
    process = torchrun(**{"heldout.checker": "tests.test_torchrun:fails_in_the_second"})
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ZeroDivisionError" in err
    assert "lost the other processes" in err


def fails_in_the_second(answer, reference):
    return 1 / (1 - int(os.environ["RANK"])) > 0


@pytest.mark.parametrize("command", [["compare", "miniature", "--methods", "sft"], ["demo"]])
def test_what_only_one_process_does(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["nrt", *command])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert f"torchrun started several `nrt {command[0]}` processes" in capsys.readouterr().err


def wait_for(condition, process, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.2)
