"""Checkpoints on a disk that is full, read-only or lies, and under signals: what is loaded is what was written."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nrt
from nrt.errors import RunError
from nrt.system.manifest import find_damage
from nrt.trainer.checkpoint import saved_choices
from nrt.trainer.listener import NullListener
from nrt.trainer.progress import Best, improved
from nrt.trainer.start import _checkpoint_errors
from tests.trainer.test_train import assert_same_run

ROOT = Path(__file__).parents[2]


def names(run):
    return [folder.name for folder in run.checkpoints()]


def pointer(run, name):
    return (run.path / "checkpoints" / name).read_text(encoding="utf-8")


def resume(make_config, run, **settings):
    return nrt.train(make_config(run=str(run), resume=str(run), **settings))


@pytest.fixture
def calls(monkeypatch):
    """(name, path) of each fsync, rename and replace, in order; a rename's path is where it leads. Temporary names are without what
    makes each another."""
    seen, real = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def traced(name):
        def call(*arguments):
            path = (
                os.readlink(f"/proc/self/fd/{arguments[0]}")
                if name == "fsync"
                else os.fspath(arguments[1])
            )
            seen.append((name, re.sub(r"\.[0-9a-f]{16}\.", ".", path)))
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, traced(name))
    return seen


def test_a_checkpoint_with_a_large_rollout_is_read(tmp_path):
    """Two thousand traces of 240 tokens take 33 MiB, and a run that stops between its updates keeps
    them.
    """
    state = {"ways": {"packed": True}, "in_hand": "7" * 34 * 2**20}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert saved_choices(tmp_path) == {"packed": True}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which file is synced")
def test_the_order_in_which_a_checkpoint_reaches_the_disk(calls, make_config):
    """Metrics; then the files and folders of the checkpoint, its name, the folder that has the name, and the pointer likewise."""
    run = nrt.train(make_config(steps=1, save_every=0))
    folder = run.path / "checkpoints"
    temporary, whole = str(folder / ".step-000001.tmp"), str(folder / "step-000001")
    files = {str(path.relative_to(whole)) for path in (folder / "step-000001").rglob("*")}
    at = calls.index(("rename", whole))
    synced = [path for name, path in calls[:at] if name == "fsync"]
    assert {
        path.removeprefix(temporary + "/")
        for path in synced
        if path.startswith(temporary + "/") and ".model.new" not in path
    } == files
    assert synced[-1] == temporary
    assert {
        str(run.path),
        str(run.path / "metrics.jsonl"),
        str(run.path / "heldout" / "step-000001.jsonl"),
    } <= set(synced)
    assert calls[at:][:5] == [
        ("rename", whole),
        ("fsync", str(folder)),
        ("fsync", str(folder / ".latest.tmp")),
        ("replace", str(folder / "latest")),
        ("fsync", str(folder)),
    ]
    assert pointer(run, "latest") == "step-000001\n"


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_passed_over(make_config, tmp_path, damage, file):
    """The one before it is taken, one line names the file, and the run ends up as if nothing had happened."""
    whole = nrt.train(make_config(run=str(tmp_path / "whole")))
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    damage(run / "checkpoints" / "step-000003" / file)
    again = resume(make_config, run)
    (warning,) = [w for w in again.warnings() if w["kind"] == "damaged-checkpoint"]
    assert warning["kind"] == "damaged-checkpoint"
    assert f"step-000003/{file} " in warning["message"]
    assert "step-000002" in warning["message"]
    assert (run / "checkpoints" / "step-000003.damaged").is_dir()
    assert_same_run(whole, again)


def test_no_checkpoint_is_whole(make_config):
    run = nrt.train(make_config())
    for folder in run.checkpoints():
        flip(folder / "rng.safetensors")
    with pytest.raises(
        nrt.InputError,
        match=r"every checkpoint is damaged: .*step-000003/rng\.safetensors.*step-000002/rng\.safetensors",
    ):
        resume(make_config, run.path)
    assert names(run) == ["step-000002", "step-000003"]


class At(NullListener):
    """Does something at the n-th phase of that name."""

    def __init__(self, phase, n, action):
        self.name, self.left, self.action = phase, n, action

    def phase(self, name):
        self.left -= name == self.name
        if self.left == 0 and name == self.name:
            self.action()


@pytest.mark.parametrize(
    "bytes_left", [20_000, 500]
)  # too few for the weights; also for a line of metrics
def test_a_file_too_large_for_the_disk(make_config, tmp_path, bytes_left):
    """A real limit (EFBIG), from the second checkpoint on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = At(
        "updating", 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    )
    run = tmp_path / "run"
    try:
        with pytest.raises(
            RunError, match=f"cannot be written .File too large.*nrt resume {run}"
        ) as failed:
            nrt.train(make_config(steps=4), listener=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.value.exit_status == 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step-000002",
    ]
    assert_same_run(
        nrt.train(make_config(run=str(tmp_path / "whole"), steps=4)),
        resume(make_config, run, steps=4),
    )


@pytest.mark.parametrize(
    ("code", "call"),
    [("ENOSPC", "fsync"), ("EDQUOT", "fsync"), ("EROFS", "mkdir"), ("EACCES", "mkdir")],
)
def test_a_disk_that_refuses(make_config, monkeypatch, tmp_path, code, call):
    """Root may write anywhere, so the system's answer is put in its mouth."""
    error = getattr(errno, code)

    def refuse():
        def fail(*arguments, **options):
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, call, fail)

    with pytest.raises(RunError, match=os.strerror(error)):
        nrt.train(make_config(steps=4), listener=At("saving", 2, refuse))
    monkeypatch.undo()
    run = nrt.load_run(tmp_path / "run")
    assert names(run) == ["step-000002"]
    assert find_damage(run.checkpoints()[0]) is None
    assert resume(make_config, run.path, steps=4).metrics()[-1]["step"] == 4


def test_the_best_checkpoint_is_kept(make_config):
    """Besides the latest; as the run's own metrics.jsonl tells. Likelihood rises, so the smallest is an early one."""
    settings = {"method": "sft", "steps": 6, "eval_every": 1, "save_every": 3, "keep": 1}
    run = nrt.train(make_config(keep_best="-heldout/logp", **settings))
    values = {record["step"]: record["heldout/logp"] for record in run.metrics() if record["step"]}
    best = min(values, key=lambda step: values[step])
    assert best < 6, "otherwise this shows nothing"
    assert names(run) == [f"step-{best:06d}", "step-000006"]
    assert (pointer(run, "best"), pointer(run, "latest")) == (f"step-{best:06d}\n", "step-000006\n")
    state = json.loads((run.checkpoints()[-1] / "state.json").read_text())
    assert state["best"] == {
        "metric": "-heldout/logp",
        "checkpoint": f"step-{best:06d}",
        "value": values[best],
    }


def test_the_best_survives_a_resume(make_config, tmp_path):
    settings = {
        "method": "sft",
        "eval_every": 1,
        "save_every": 2,
        "keep": 1,
        "keep_best": "-heldout/logp",
    }
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), steps=5, **settings))
    run = tmp_path / "run"
    nrt.train(make_config(run=str(run), steps=3, **settings))
    again = resume(make_config, run, steps=5, **settings)
    assert names(again) == names(whole)
    assert pointer(again, "best") == pointer(whole, "best")


@pytest.mark.parametrize(
    ("metric", "value", "better"),
    [
        ("heldout/gain", 2.0, True),
        ("heldout/gain", 1.0, False),
        ("-heldout/gain", 0.5, True),
        ("heldout/gain", float("nan"), False),
    ],
)
def test_better(metric, value, better):
    found = improved(
        Best(metric, "step-000001", 1.0), metric, "step-000002", {"heldout/gain": value}
    )
    assert found == (Best(metric, "step-000002", value) if better else None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_best": "heldout/acuracy"}, "did you mean 'heldout/accuracy'"),
        ({"keep_best": "reward/gain"}, "not a held-out metric"),
        ({"keep_best": "heldout/accuracy", "heldout.checker": None}, "needs a checker"),
        ({"keep_best": "heldout/logp", "data.valid": None}, "data.valid"),
        ({"keep_best": "heldout/logp/nowhere"}, "no such metric"),
        ({"save_signal": "SIGUSR"}, "no such signal"),
        ({"save_signal": "SIGTERM"}, "is used for something else"),
    ],
)
def test_settings_that_cannot_be(make_config, settings, said):
    with pytest.raises(nrt.InputError, match=said):
        nrt.train(make_config(**settings))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_signal_saves_and_the_run_goes_on(make_config, tmp_path, n):
    """At the next place where it can, which is after the first update: that comes with the scores.

    What it leaves is that of the run without the signal, and a resumed run continues from it.
    """
    settings = {"updates_per_rollout": 2, "save_every": 0, "profile": "paper", "keep": 9}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    run = tmp_path / "run"
    usr1 = At("sampling", n, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    signalled = nrt.train(make_config(run=str(run), **settings), listener=usr1)
    assert_same_run(whole, signalled)
    saved, last = signalled.checkpoints()
    assert last.name == "step-000003"
    assert saved.name == f"step-{n - 1:06d}+1"
    shutil.rmtree(last)
    if n > 1:
        with pytest.raises(nrt.InputError, match=f"below the {n} steps that the run has done or"):
            resume(make_config, run, steps=n - 1, **settings)
    assert_same_run(whole, resume(make_config, run, **settings))


def test_lack_of_memory_is_no_fault_of_the_checkpoint(tmp_path):
    lack = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    with pytest.raises(RuntimeError, match="can't allocate"), _checkpoint_errors(tmp_path):
        raise RuntimeError(lack)
    with pytest.raises(nrt.InputError, match="is no checkpoint"), _checkpoint_errors(tmp_path):
        raise RuntimeError("shapes differ")


def test_a_metric_given_at_the_resume_must_exist(make_config, tmp_path):
    run = tmp_path / "run"
    nrt.train(make_config(run=str(run), steps=1, eval_every=1))
    with pytest.raises(nrt.InputError, match="no such metric; it has heldout/"):
        resume(make_config, run, steps=2, keep_best="heldout/logp/nowhere")


def test_stale_traces_need_a_correction_after_a_resume_too(make_config, tmp_path):
    run, settings = tmp_path / "run", {"method": "log-prob", "steps": 1}
    nrt.train(make_config(run=str(run), **settings))
    with pytest.raises(nrt.InputError, match="trains on traces of earlier weights"):
        resume(make_config, run, sampler="vllm", **{**settings, "vllm.strict": False})


def test_what_was_saved_already_is_not_written_again(calls, make_config):
    """SIGUSR1 twice in one place, and then a stop there."""

    def ask():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(nrt.trainer.loop.Interrupted):
        nrt.train(make_config(save_every=1), listener=At("saving", 1, ask))
    assert [
        path[-11:]
        for name, path in calls
        if name == "rename" and "/step-" in path and "model" not in path
    ] == ["step-000001"]


def test_a_second_sigint_ends_it_at_once(make_config, tmp_path):
    """The command, amid a step that would take minutes: status 130, and the last checkpoint is there to go on from."""
    recipe = tmp_path / "recipe.yaml"
    config = make_config(
        steps=3,
        save_every=1,
        overlap=True,
        observer="tests.trainer.test_checkpoints:interrupts_twice",
    )
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "NRT_TEST_FLAG": str(tmp_path / "first"),
    }
    command = [sys.executable, "-m", "nrt", "train", str(recipe)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    run = nrt.load_run(tmp_path / "run")
    assert names(run) == ["step-000001"]
    assert not (run.path / "lock").exists()
    assert find_damage(run.checkpoints()[0]) is None


def interrupts_twice(rollout, tokenizer):
    """In the second step."""
    import time

    flag = Path(os.environ["NRT_TEST_FLAG"])
    if flag.exists():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1000)
    flag.touch()
    return {}
