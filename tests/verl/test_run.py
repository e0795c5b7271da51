"""A run on two workers as a user starts it.

It trains, writes the same run folder as any engine, and can be resumed after a worker is killed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nrt.cli.app import app
from nrt.lab.base import BaseSettings, Stage, build_base
from nrt.lab.settings import data_settings
from nrt.run import Run
from nrt.serving.export import export_run

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]


@pytest.fixture(scope="module")
def settings():
    """Settings of four short steps of the miniature, on a base model of a few steps."""
    stages = BaseSettings().stages
    quick = [Stage(stage.mixture, 20, stage.lr, warmup=5) for stage in stages]
    model = build_base(BaseSettings(stages=tuple(quick)))
    return [
        f"model={model}",
        *data_settings(BaseSettings()),
        "steps=4",
        "batch=4",
        "traces=4",
        "save_every=2",
        "eval_every=0",
        "heldout.rows=6",
        "updates_per_rollout=2",
        "engine=verl",
        "gpus_per_node=2",
        "device=cpu",
    ]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """(arguments) → a process of `nrt train`, and its working folder.

    Processes that still run at the end are killed.
    """
    folder, processes = tmp_path_factory.mktemp("work"), []

    def start(*arguments):
        process = psutil.Popen(
            [sys.executable, "-m", "nrt", "train", *arguments, "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, folder

    yield start
    for process in processes:
        if process.is_running():
            process.kill()


def test_a_cluster_that_is_too_small_leaves_no_run(settings, started):
    """The user can give the same name again, with fewer GPUs."""
    process, folder = started(
        "miniature", *settings, "run=small", "verl.ray_kwargs.ray_init.num_cpus=1"
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the Ray cluster has 1 CPUs, and nodes=1 × gpus_per_node=2 needs 6" in errors
    assert list((folder / "runs" / "small").iterdir()) == []


def test_a_run_resumes_after_a_worker_is_killed(settings, started, capsys):
    process, folder = started("miniature", *settings, "run=mini")
    path = folder / "runs" / "mini"
    wait_for(lambda: steps_of(path) >= 3, process)
    metrics = Run(path).metrics()
    children = process.children(recursive=True)
    worker = next(child for child in children if "WorkerDict" in " ".join(child.cmdline()))
    worker.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors[-2000:]
    message = errors.strip().splitlines()[-1]
    assert message.startswith("error: a worker of the cluster failed: ")
    assert f"nrt resume {Path('runs/mini')}" in message
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert [c.name for c in Run(path).checkpoints()] == ["step-000002"]

    process, _ = started("resume=mini")
    children = set()
    while process.poll() is None:
        children.update(process.children(recursive=True))
        time.sleep(1)
    assert process.returncode == 0, process.communicate()[1][-2000:]
    assert psutil.wait_procs(list(children), timeout=30)[1] == []
    run = Run(path)
    check_metrics(run)
    # step 3 ran again from the checkpoint of step 2
    for name in ("reward/gain", "trace/length", "loss/total", "optim/grad_norm", "answer/logp"):
        assert run.metrics()[3][name] == metrics[3][name], name
    check_folder(run, folder)
    check_commands(run, folder / "exported", capsys)


def check_metrics(run):
    records = run.metrics()
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    last = records[-1]
    names = {
        "reward/mean",
        "reward/gain_initial",
        "loss/trace",
        "ratio/mean",
        "optim/lr",
        "heldout/accuracy",
        "time/rollout",
    }
    assert names <= last.keys()
    assert last["optim/updates"] == 8
    assert last["sampler/logp_gap_max"] < 1e-4
    assert last["optim/lr"] == pytest.approx(5e-4)
    assert records[1]["optim/lr"] == pytest.approx(5e-4 / 5)  # second of five warm-up updates
    assert last["answer/logp"] > records[1]["answer/logp"]


def check_folder(run, folder):
    """The folder has the files of any run, and its model can be exported."""
    assert len(run.traces()) == 4
    assert run.heldout_steps() == [0, 4]
    assert len(run.heldout()) == 6
    files = sorted(path.name for path in run.checkpoints()[-1].iterdir())
    assert files == ["manifest.json", "model", "state.json", "verl"]
    assert len(run.environment) == 2
    out = folder / "exported"
    export_run(run, out)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer.convert_tokens_to_ids(["<|think_start|>", "<|think_end|>"])
    assert max(ids) < model.get_input_embeddings().weight.shape[0]
    assert "<|think_start|>" in tokenizer.chat_template
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"]


def check_commands(run, exported, capsys):
    """Commands that need no other library work with a run of this engine."""

    def output_of(*arguments):
        app(list(map(str, arguments)), standalone_mode=False)
        return capsys.readouterr().out

    question = run.heldout()[0]["question"]
    assert "nrt-ws-neg-log-p" in output_of("report", run.path, "--text")
    capsys.readouterr()
    arguments = (run.path, "--question", question, "--answer", "well", "--json")
    (line,) = output_of("confidence", *arguments).splitlines()
    assert 0 < json.loads(line)["probability"] < 1
    caps = ("--max-trace-tokens", 5, "--max-answer-tokens", 5)
    assert output_of("chat", exported, "--prompt", question, *caps).strip()


def steps_of(path):
    file = path / "metrics.jsonl"
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def wait_for(condition, process, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.05)
