"""Folders of `nrt eval`, `nrt judge` and `nrt compare`, with something wrong in them, read again by what reads them.

Each is made once, by the commands' own functions; an input is a copy of it with one file, or a whole run, damaged, reshaped, swapped or
gone.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from nrt.analysis.report.data import build_report
from nrt.analysis.report.figures import write_figures
from nrt.analysis.report.page import embedded
from nrt.analysis.report.text import print_report
from nrt.cli.compare import make_study, write_results
from nrt.cli.evaluate import evaluate_models, write_rows
from nrt.eval.answering import answer_all
from nrt.eval.asking import Backend
from nrt.eval.harness import Decoding
from nrt.eval.judge import judge_runs
from nrt.eval.questions import ReplyStore
from nrt.eval.suite import EvalPlan, prepare
from nrt.run import load_run
from nrt.study import open_study
from nrt.study.study import read_study, run_path
from nrt.system.disk_errors import explain_disk_errors
from tests.eval import judge_server
from tests.eval.benchmarks import write_benchmarks
from tests.eval.reasoners import save_tiny_model, scripted
from tests.fuzz import inputs
from tests.fuzz.outcome import assert_unchanged, contents, outcome, verdict
from tests.runs import write_run

ASKED = "gsm8k,mmlu,truthfulqa,truthfulqa-null,ifeval-pass10"
"""What is graded in milliseconds: MATH and HumanEval have alarms and processes of their own."""


def made_once(make: Callable[[Path], Path]) -> Callable[[], Path]:
    """The folder that `make` makes below an empty one, at the first call; for reading only."""

    @cache
    def made() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return make(folder)

    return made


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def files_of(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def shown(*runs: Path) -> list[str]:
    """What became of a report of the runs, on the terminal and as a page's data."""
    return [
        outcome(lambda: print_report(build_report(runs), quiet())),
        outcome(lambda: embedded(build_report(runs))),
    ]


# --- nrt eval ---


def replies(rng: Random, folder: Path) -> str:
    """Kept replies: what is gone, cut or no reply is asked again; all rows are graded and written."""
    shutil.copytree(_kept(), kept := folder / "replies")
    for _ in range(rng.choice((1, 1, 3))):
        if files := files_of(kept):
            inputs.meddle(rng, rng.choice(files), files_of(_kept()))

    def go_on() -> None:
        with explain_disk_errors(folder, "again"):
            found, plan = ReplyStore(kept), _plan()
            for task, said in answer_all(_reasoner(), found.missing(plan.questions())):
                found.add(task, said)
            write_rows(folder, plan, found)
        assert ReplyStore(kept).missing(plan.questions()) == []

    return outcome(go_on)


@cache
def _plan() -> EvalPlan:
    return prepare(ASKED.split(","), Decoding(8), folder=str(_data()), limit=3)


@cache
def _reasoner() -> Any:
    return scripted(
        lambda prompt, tracing: "let us see<|think_end|>" if tracing else "The answer is 7"
    )


@made_once
def _data(folder: Path) -> Path:
    return write_benchmarks(folder / "data")


@made_once
def _kept(folder: Path) -> Path:
    found = ReplyStore(folder / "replies")
    for task, said in answer_all(_reasoner(), _plan().questions()):
        found.add(task, said)
    return folder / "replies"


def eval_folders(rng: Random, folder: Path) -> str:
    """RUN/eval, through report and figures, and gone on with by `nrt eval`, after which all of it is whole; refused, it is as it was."""
    run = folder / "run"
    shutil.copytree(_evaluated(0), run)
    inputs.meddle(
        rng,
        rng.choice(files_of(run / "eval")),
        files_of(_evaluated(0) / "eval", _evaluated(1) / "eval"),
    )
    before = contents(run)
    found = shown(run) + shown(run, _evaluated(1))
    if rng.random() < 0.05:
        found.append(outcome(lambda: write_figures([run], folder / "figures")))
    assert_unchanged(run, before)
    again = outcome(lambda: _evaluate(run))
    if again == "taken":
        assert shown(run) == ["taken", "taken"]
    return verdict([*found, again])


def _evaluated(seed: int) -> Path:
    return (_first_evaluated, _second_evaluated)[seed]()


def _make_evaluated(folder: Path, seed: int) -> Path:
    run = write_run(folder / "run", groups=2, traces=2, seed=seed)
    save_tiny_model(run / "model", thinks=True, context=800, seed=seed)
    _evaluate(run)
    return run


_first_evaluated = made_once(lambda folder: _make_evaluated(folder, 0))
_second_evaluated = made_once(lambda folder: _make_evaluated(folder, 1))


def _evaluate(run: Path) -> None:
    evaluate_models(
        quiet(),
        [str(run)],
        benchmarks=ASKED,
        data=_data(),
        limit=2,
        decoding=Decoding(4),
        backend=Backend(device="cpu"),
    )


# --- nrt judge ---


def judge_folders(rng: Random, folder: Path) -> str:
    """RUN/judge, what is judged, and the verdicts in the cache: judged again, and shown. Refused, it is as it was."""
    run, cache_before = folder / "run", os.environ.get("NRT_CACHE")
    shutil.copytree(_judged() / "run", run)
    shutil.copytree(_judged() / "cache", folder / "cache")
    file = rng.choice(files_of(run / "judge") * 3 + files_of(run / "heldout", folder / "cache"))
    inputs.meddle(rng, file, files_of(_judged()))
    before = contents(run)
    os.environ["NRT_CACHE"] = str(folder / "cache")
    try:
        found = [outcome(lambda: load_run(run).metrics()), *shown(run)]
        again = outcome(lambda: _judge(run, samples=rng.choice((3, 4))))
    finally:
        _set_cache(cache_before)
    if again == "refused":
        assert_unchanged(run, before)
    else:
        load_run(run).metrics()
    return verdict([*found, again])


@made_once
def _judged(folder: Path) -> Path:
    before, run = os.environ.get("NRT_CACHE"), write_run(folder / "run", groups=2, traces=2)
    os.environ["NRT_CACHE"] = str(folder / "cache")
    try:
        _judge(run, samples=3)
    finally:
        _set_cache(before)
    return folder


def _set_cache(value: str | None) -> None:
    if value is None:
        os.environ.pop("NRT_CACHE", None)
    else:
        os.environ["NRT_CACHE"] = value


def _judge(run: Path, samples: int) -> None:
    judge_runs(quiet(), [run], model="judge", url=_server(), samples=samples, jobs=1, retries=0)


@cache
def _server() -> str:
    """A judge of this process's own that finds every trace half good."""
    reply = judge_server.completion(judge_server.verdict(0.5))

    class Handler(judge_server.ChatHandler):
        def answer(self, body: Any) -> tuple[int, dict[str, str], Any]:
            return 200, {}, reply

    os.environ["NO_PROXY"] = "127.0.0.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    atexit.register(server.server_close)
    atexit.register(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}/v1"


# --- nrt compare ---


def studies(rng: Random, folder: Path) -> str:
    """A study whose runs are done, gone on with and shown: a file or run of it damaged, gone or another's. Refused, it is as it was."""
    study = folder / "study"
    shutil.copytree(_studies() / "a", study)
    runs = sorted((study / "runs").iterdir())
    if rng.random() < 0.15:
        run = rng.choice(runs)
        shutil.rmtree(run)
        shutil.copytree(rng.choice(sorted((_studies() / rng.choice("ab") / "runs").iterdir())), run)
    else:
        file = rng.choice([study / "study.yaml"] * 8 + files_of(study))
        inputs.meddle(rng, file, [*files_of(study), *[_studies() / "b" / "study.yaml"] * 8])
    before = contents(study)
    again = outcome(lambda: _go_on(study, rng.choice(("correct", "logp"))))
    if again == "refused":
        assert_unchanged(study, before)
    return verdict([again, *shown(*runs)])


def _go_on(study: Path, measure: str) -> None:
    """`nrt compare` but for the runs: those that are missing would be processes of their own."""
    with explain_disk_errors(study, "again"):
        folder = open_study(str(study), _terms("a"))
        write_results(folder, [], measure=measure)


def _terms(name: str) -> Any:
    settings = ["traces=3"] if name == "a" else ["traces=4"]
    return make_study(
        str(_recipe()), settings, methods="sft,nrt-gm", variants="", seeds=2, baseline=""
    )


@made_once
def _recipe(folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text("steps: 2\nbatch: 1\ndata: {valid: folder/valid.jsonl}\n")
    return file


@made_once
def _studies(folder: Path) -> Path:
    """Two studies of the same recipe and variants, which differ in the number of traces."""
    for name, traces in (("a", 3), ("b", 4)):
        study = open_study(str(folder / name), _terms(name))
        for variant, seed in read_study(study).runs():
            path = run_path(study, variant, seed)
            run = write_run(path, method=variant, seed=seed, groups=2, traces=traces, norm="length")
            (run / "model" / "config.json").write_text("{}")
        write_results(study, [])
    return folder
