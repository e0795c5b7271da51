"""`nrt compare` with real runs of a tiny model, each in its own process."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec

import pytest
import yaml
from rich.console import Console

from nrt.cli.compare import compare_study, make_study, write_results
from nrt.config import load_config
from nrt.errors import InputError, Interrupted, RunError
from nrt.study import open_study, run_study
from nrt.study.runs import _failure
from nrt.study.study import read_study, read_variants, run_path
from nrt.trainer import train
from nrt.trainer.heldout import MEASURES, HeldoutRecord
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401


@pytest.fixture
def recipe(make_config, tmp_path):  # noqa: F811
    values = make_config(steps=2, eval_every=0, method="nrt-gm").model_dump(mode="json")
    file = tmp_path / "tiny.yaml"
    file.write_text(
        yaml.safe_dump(
            {k: v for k, v in values.items() if k not in ("run", "seed", "resume", "method")}
        )
    )
    return str(file)


@pytest.mark.slow  # starts five processes, and each imports everything
def test_missing_runs_are_started_and_failed_ones_listed(recipe, tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=160)
    variants = tmp_path / "variants.yaml"
    variants.write_text(
        "baseline: sft\nvariants:\n  sft: [method=sft]\n  nrt-gm: [method=nrt-gm]\n"
        "  broken: [model=absent]\n"
    )
    study = tmp_path / "study"

    def run():
        return compare_study(
            console, recipe, [], variants=str(variants), seeds=1, study=str(study), measure="logp"
        )

    first = run()
    assert list(first.missing) == ["broken, seed 0"]
    assert "absent" in first.missing["broken, seed 0"]
    assert "3 of 3 runs to do" in out.getvalue()
    assert "FAILED" in out.getvalue()
    assert {row.variant for row in first.rows if row.interval} == {"sft", "nrt-gm"}
    for name in (
        "compare.json",
        "compare.md",
        "accuracy.png",
        "dynamics.png",
        "confidence.png",
        "study.yaml",
    ):
        assert (study / name).stat().st_size > 0
    assert json.loads((study / "compare.json").read_text())["missing"] == first.missing

    done = study / "runs" / "sft-seed0" / "metrics.jsonl"
    before = done.stat().st_mtime_ns
    (study / "runs" / "nrt-gm-seed0" / "model").rename(
        tmp_path / "taken"
    )  # as if the run had been cut before its end
    again = run()
    assert done.stat().st_mtime_ns == before
    assert again.rows == first.rows
    assert "2 of 3 runs to do" in out.getvalue()


ORPHAN = """
import sys, time
from pathlib import Path
from nrt.config import Config
from nrt.run import RunWriter
run, finish = map(Path, sys.argv[1:])
with RunWriter.create(run, Config()):
    print("ready", flush=True)
    while not finish.is_file():
        time.sleep(0.05)
    (run / "model").mkdir()
"""
"""A run that continues after its command was killed, until the file `finish` exists."""


def test_it_waits_for_a_run_that_a_killed_command_left_running(recipe, tmp_path):
    folder = open_study(
        str(tmp_path / "study"),
        make_study(recipe, [], methods="sft", variants="", seeds=1, baseline=""),
    )
    messages, finish = [], tmp_path / "finish"

    def report(line):
        messages.append(line)
        if "waiting" in line:
            finish.touch()

    command = [sys.executable, "-c", ORPHAN, str(run_path(folder, "sft", 0)), str(finish)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "ready\n"
        (outcome,) = run_study(folder, report=report)
        assert orphan.wait() == 0
    assert (outcome.status, outcome.error) == (0, "")
    expected = f"waiting for process {orphan.pid}, which another command started"
    assert f"sft, seed 0: {expected}" in messages


def open_tiny(recipe, tmp_path, **options):
    study = {"methods": "sft", "variants": "", "seeds": 1, "baseline": "", **options}
    return open_study(str(tmp_path / "study"), make_study(recipe, [], **study))


def test_nothing_starts_after_an_interrupt(recipe, tmp_path):
    """Ctrl-C while a run is being prepared: the run must not start when that is done."""
    folder = open_tiny(recipe, tmp_path, seeds=2)

    def prepare(seed):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        return ()

    with pytest.raises(Interrupted, match="interrupted"):
        run_study(folder, report=lambda line: None, prepare=prepare)
    assert not (folder / "runs").exists()
    assert not list((folder / "logs").iterdir())


def test_an_error_before_a_run_is_its_outcome(recipe, tmp_path):
    def prepare(seed):
        if seed == 0:
            raise InputError("no base model")
        raise OSError("disk full")

    outcomes = run_study(
        open_tiny(recipe, tmp_path, seeds=2), report=lambda line: None, prepare=prepare
    )
    assert [outcome.error for outcome in outcomes] == ["no base model", "disk full"]


def test_why_a_process_failed(tmp_path):
    log = tmp_path / "log"
    log.write_text('error: of an earlier try\n{"step": 1}\nerror: no room\n{"step": 2}\n')
    assert _failure(1, log, 0) == "error: no room"
    assert _failure(1, log, len("error: of an earlier try\n{}")) == "error: no room"
    assert _failure(-9, log, 0).startswith("killed by signal 9, Killed (often: out of memory)")
    log.write_text("error: of an earlier try\n")
    assert "printed no reason" in _failure(1, log, log.stat().st_size)


def test_results_of_another_command_are_kept(recipe, tmp_path):
    """`nrt compare` tabulates what is finished, whoever ran it."""
    folder = open_tiny(recipe, tmp_path, methods="sft,nrt-gm")
    with pytest.raises(RunError, match=r"no run of .* is finished .*sft, seed 0: not finished"):
        write_results(folder, [], measure="logp")
    for method in ("sft", "nrt-gm"):
        arguments = read_study(folder).train_arguments(method, 0, folder)
        train(load_config(arguments[0], arguments[1:]))
    comparison = write_results(folder, [], measure="logp")
    assert {row.variant for row in comparison.rows if row.interval} == {"sft", "nrt-gm"}
    assert comparison.missing == {}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("corect", "unknown measure 'corect'; did you mean 'correct'"),
        ("answer", "unknown measure 'answer'"),
        ("logp_swapped", r"needs heldout\.swapped=true"),
    ],
)
def test_a_measure_that_no_run_would_have(recipe, tmp_path, measure, message):
    with pytest.raises(InputError, match=message):
        compare_study(
            Console(file=io.StringIO()), recipe, [], methods="sft", measure=measure,
            study=str(tmp_path / "study"),
        )  # fmt: skip


def test_the_measures_are_the_records_numbers():
    kinds = {"float", "float | None", "int | None", "bool | None"}
    assert set(MEASURES) == {each.name for each in fields(HeldoutRecord) if each.type in kinds}


def test_a_study_accepts_only_new_variants_and_seeds(recipe, tmp_path):
    folder = open_study(
        str(tmp_path / "study"),
        make_study(recipe, ["batch=8"], methods="sft,nrt-gm", variants="", seeds=1, baseline=""),
    )
    assert read_study(folder).baseline == "sft"
    with pytest.raises(InputError, match="another --study name"):
        open_study(
            str(folder),
            make_study(recipe, ["batch=4"], methods="sft", variants="", seeds=1, baseline=""),
        )
    open_study(
        str(folder),
        make_study(recipe, ["batch=8"], methods="sft,rlpr", variants="", seeds=3, baseline=""),
    )
    assert list(read_study(folder).variants) == ["sft", "nrt-gm", "rlpr"]
    assert read_study(folder).seeds == 3
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"methods": "", "variants": ""}, "either --methods"),
        ({"methods": "sft", "variants": "terms"}, "either --methods"),
        ({"methods": "sft", "seeds": 0}, "at least 1"),
        ({"methods": "sft,nrt-gm", "baseline": "nrt-mg"}, "did you mean 'nrt-gm'"),
        ({"variants": "trems"}, "did you mean 'terms'"),
    ],
)
def test_invalid_studies(recipe, overrides, message):
    options = {"methods": "", "variants": "", "seeds": 1, "baseline": "", **overrides}
    with pytest.raises(InputError, match=message):
        make_study(recipe, [], **options)


@pytest.mark.parametrize("setting", ["tracking.id=mine", "hub.repo=me/mine"])
def test_what_belongs_to_one_run_is_refused(setting, recipe, tmp_path):
    study = make_study(recipe, [setting], methods="sft", variants="", seeds=1, baseline="")
    with pytest.raises(InputError, match=r"tracking\.id or hub\.repo, which belong to one run"):
        study.check_settings(tmp_path)


def test_a_misspelt_setting_is_an_error_before_any_run(recipe, tmp_path):
    with pytest.raises(InputError, match="did you mean 'steps'"):
        compare_study(
            Console(file=io.StringIO()),
            recipe,
            ["stesp=3"],
            methods="sft",
            seeds=1,
            study=str(tmp_path / "none"),
        )
    with pytest.raises(InputError, match="did you mean 'nrt-gm'"):
        compare_study(
            Console(file=io.StringIO()),
            recipe,
            [],
            methods="nrt-mg",
            seeds=1,
            study=str(tmp_path / "none"),
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is installed")
def test_a_missing_engine_is_an_error_before_any_run_or_file(recipe, make_config, tmp_path):  # noqa: F811
    variants = tmp_path / "variants.yaml"
    variants.write_text(
        "baseline: local\nvariants:\n  local: []\n"
        "  verl: [engine=verl, gpus_per_node=2, device=cpu]\n"
    )
    with pytest.raises(InputError, match="needs verl"):
        compare_study(
            Console(file=io.StringIO()),
            recipe,
            [],
            variants=str(variants),
            study=str(tmp_path / "none"),
        )
    with pytest.raises(InputError, match="needs verl"):
        train(make_config(engine="verl", device="cpu", run=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["terms", "advantage", "sampling", "controls"])
def test_packaged_variants_are_valid(name, tmp_path):
    variants = read_variants(name)
    assert variants.baseline in variants.variants
    make_study("miniature", [], methods="", variants=name, seeds=1, baseline="").check_settings(
        tmp_path
    )
