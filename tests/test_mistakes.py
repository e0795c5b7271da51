"""Plausible mistakes of a first day: each message names cause, place and fix, and is short."""

import json
import sys

import pytest

from nrt.cli.app import main
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

SMALL = [
    "threads=1", "steps=1", "batch=2", "traces=2", "max_trace_tokens=4", "max_answer_tokens=8",
    "max_prompt_tokens=16", "device=cpu",
]  # fmt: skip


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, model_dir, pairs_file):  # noqa: F811
    """command("train", …) → (exit status, standard output, standard error), in a folder of its own with a model and pairs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(model_dir)
    (tmp_path / "pairs.jsonl").write_bytes(pairs_file.read_bytes())
    (tmp_path / "alpaca.jsonl").write_text(
        json.dumps({"instruction": "what is one ?", "input": "", "output": "one"}) + "\n"
    )
    turns = [{"role": "user", "content": "one ?"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nrt", *arguments])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = int(left.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train lr=1e-5", "unknown setting 'lr'; in nrt it is optimizer.lr"),
        ("train num_generations=4", "in nrt it is traces"),
        ("train report_to=wandb", "in nrt it is trackers"),
        ("train push_to_hub=true", "in nrt it is hub.repo"),
        ("train stesp=4", "did you mean 'steps'?"),
        ("train --steps 3 model=tiny", "settings have no dashes: write steps=VALUE"),
        ("train pairs --lr=3", "settings have no dashes: write lr=VALUE"),
        ("train lora=true", "lora is a section of settings; set one of them, such as lora.rank"),
        ("train optimizer=adamw", "optimizer is a section of settings"),
        ("train steps=ten", "setting steps='ten': input should be a valid integer"),
        ("train gsm9k", "did you mean 'gsm8k'?"),
        ("train model=tiny", "no training data given; set data.train=FILE"),
        ("train data.train=pairs.jsonl", "no model given; set model=FOLDER"),
        ("train model=tiny data.train=none.jsonl", "none.jsonl: no such file"),
        ("train resume=nothing", "runs/nothing is not a run"),
        ("report ./notarun", "notarun is not a run: it has no config.yaml; give the name"),
        ("replay first", "give a file RUN/skipped/step-….json"),
        ("chat nothing", "there is no run runs/nothing, and model nothing is neither a folder nor"),
        ("compare pairs model=tiny data.train=pairs.jsonl --methods sft,rlpr", "set data.valid=FILE"),
        (
            "compare pairs model=tiny data.train=pairs.jsonl data.valid=pairs.jsonl --methods sft,rlpr",
            "--measure correct needs a checker of answers; set heldout.checker=exact",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_and_how_to_fix_it(command, arguments, message):
    status, _, err = command(*arguments.split())
    assert status == 2
    assert message in err
    assert len(err) < 700
    assert err.count(",") <= 12, "no long list of names"


def test_a_folder_of_save_to_disk(command, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"question": "one ?", "answer": "two"}]).save_to_disk(
        tmp_path / "saved"
    )
    status, _, err = command("train", "model=tiny", "data.train=saved")
    assert status == 2
    assert (
        "saved was written by save_to_disk of datasets; write a file with Dataset.to_parquet" in err
    )


def test_resume_with_another_setting_and_of_a_finished_run(command):
    """One setting is named, not two dicts; and a finished run says how to train further."""
    assert command("train", "model=tiny", "data.train=pairs.jsonl", *SMALL)[0] == 0
    status, _, err = command("train", "resume=run", "optimizer.lr=1")
    assert status == 2
    assert "the run to resume has optimizer.lr=1e-05, not 1.0; leave the setting out" in err
    assert len(err) < 200
    status, out, _ = command("train", "resume=run")
    assert status == 0
    assert "all 1 steps are done; to train further, resume with more steps" in out


@pytest.mark.parametrize("file", ["pairs.jsonl", "alpaca.jsonl", "chat.jsonl"])
def test_no_recipe_reads_all_common_columns(command, file):
    status, out, err = command(
        "train", "model=tiny", f"data.train={file}", *SMALL, "method=sft", "batch=1"
    )
    assert status == 0, err
    assert "done: runs/run" in out
