"""The `next:` line of a command is a command that runs."""

import shlex
import shutil
import sys

import pytest

from nrt.cli import app as cli
from nrt.cli.common import print_next
from tests.eval.benchmarks import write_benchmarks
from tests.runs import write_run
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

SMALL = "steps=1 batch=2 traces=2 max_trace_tokens=4 max_answer_tokens=8 threads=1"


@pytest.fixture
def next_of(tmp_path, monkeypatch, capsys, model_dir, pairs_file):  # noqa: F811
    """Return a function that runs a command in a folder with a model and pairs.

    It maps the command line to the text after `next: `, or to None without such a line.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(model_dir)
    (tmp_path / "pairs.jsonl").write_bytes(pairs_file.read_bytes())

    def call(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as exit_request:
            status = exit_request.code
        captured = capsys.readouterr()
        assert not status, captured.err
        hints = [
            text.removeprefix("next: ")
            for text in captured.out.splitlines()
            if text.startswith("next: ")
        ]
        assert len(hints) < 2
        return hints[0] if hints else None

    return call


def test_from_checked_data_to_a_model_that_answers(next_of, tmp_path):
    """Each hint is run as printed, up to the last one."""
    settings = f"data.valid=pairs.jsonl model=tiny {SMALL}"
    hint = next_of(f"nrt data check pairs.jsonl {settings} --recipe pairs")
    assert hint == f"nrt train pairs data.train=pairs.jsonl {settings}"
    hint = next_of(f"{hint} 'run=the first'")
    assert hint == "nrt report 'the first'"
    hint = next_of(hint)
    assert hint == "nrt chat 'the first'"
    assert next_of(f"{hint} --prompt one --max-trace-tokens 2 --max-answer-tokens 2") is None
    write_benchmarks(tmp_path / "data")
    tokens = "--max-trace-tokens 2 --max-answer-tokens 2"
    hint = next_of(f"nrt eval 'the first' --benchmarks gsm8k --data data --limit 1 {tokens}")
    assert hint == "nrt report 'the first'"
    hint = next_of("nrt export 'the first' exported")
    assert hint == "nrt chat exported"
    assert next_of(f"{hint} --prompt one --max-trace-tokens 2 --max-answer-tokens 2") is None


def test_after_a_run_with_a_report_and_for_programs(next_of):
    run = f"nrt train model=tiny data.train=pairs.jsonl {SMALL}"
    assert next_of(f"{run} --report run=./elsewhere") == "nrt chat ./elsewhere"
    assert next_of(f"{run} --json") is None
    assert next_of("nrt data check pairs.jsonl --json") is None
    assert next_of("nrt plan pairs model=tiny --gpu l4 --json") is None


def test_what_is_missing_is_in_capitals(next_of, tmp_path):
    (tmp_path / "more.jsonl").write_bytes((tmp_path / "pairs.jsonl").read_bytes())
    hint = next_of("nrt data check pairs.jsonl more.jsonl data.shuffle=false")
    assert hint == "nrt train model=MODEL 'data.train=[pairs.jsonl,more.jsonl]' data.shuffle=false"


def test_reports_of_several_runs_and_of_one_in_progress(next_of, tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name)
    assert next_of("nrt report one two") == "nrt report one two --serve"
    assert next_of("nrt report one") == "nrt chat one"
    shutil.rmtree(tmp_path / "runs" / "one" / "model")
    assert next_of("nrt report one") == "nrt report one --serve", "it is still training"


def test_a_study_is_reported(next_of, tmp_path):
    data = "model=tiny data.train=pairs.jsonl data.valid=pairs.jsonl heldout.checker=exact"
    small = f"{SMALL} max_prompt_tokens=16 heldout.rows=1 eval_every=0"
    study = f"nrt compare pairs {data} {small} --methods sft --seeds 1 --study"
    assert next_of(f"{study} 'a study'") == "nrt report 'runs/a study/runs'/*"
    (run,) = (tmp_path / "runs" / "a study" / "runs").glob("*")
    assert next_of(f"nrt report {shlex.quote(str(run))}") == f"nrt chat {shlex.quote(str(run))}"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("model=tiny data.train=pairs.jsonl", "nrt train pairs model=tiny data.train=pairs.jsonl"),
        ("model=llama-3.2-1b", "nrt train pairs model=MODEL data.train=FILE"),
        ("model=tiny --gpus 16", None),
        (
            "model=tiny --gpus 2",
            "torchrun --standalone --nproc_per_node 2 -m nrt train pairs model=tiny "
            "data.train=FILE",
        ),
    ],
)
def test_plan(next_of, arguments, hint):
    assert next_of(f"nrt plan pairs {arguments} --trace 100") == hint


def test_recipes_that_bring_model_or_data_are_not_asked_for_them(next_of):
    check = next_of("nrt data check pairs.jsonl --recipe smollm2-pairs")
    assert check == "nrt train smollm2-pairs data.train=pairs.jsonl"
    plan = next_of("nrt plan smollm2 model=tiny --trace 10")
    assert plan == "nrt train smollm2 model=tiny"


def test_a_plan_that_needs_changes_names_them_and_they_fit(next_of):
    plan = "nrt plan pairs model=llama-3.2-1b --trace 100 --gpu rtx3090"
    hint = next_of(plan)
    changes = hint.removeprefix("nrt train pairs model=MODEL data.train=FILE ")
    assert changes != hint
    changed = next_of(plan.replace(" --trace", f" {changes} --trace"))
    assert changed == f"nrt train pairs model=MODEL {changes} data.train=FILE", "it fits as it is"
    assert next_of("nrt plan pairs model=llama-3.1-70b --gpu t4") is None, "nothing fits"


def test_outside_the_environment_the_hint_names_the_program_that_was_called(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [".venv/bin/nrt", "demo"])
    print_next("chat", "demo")
    assert capsys.readouterr().out == "next: .venv/bin/nrt chat demo\n"
