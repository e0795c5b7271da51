"""`nrt demo`: a model learns to reason from question–answer pairs.

The miniature is a tiny model of its own world; smollm2 is a pretrained model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nrt.analysis.stats import wilson
from nrt.config import Config, load_config
from nrt.errors import InputError, unknown_name
from nrt.lab.base import BaseSettings, build_base
from nrt.lab.evaluation import evaluate_base
from nrt.lab.plain import plain_verdicts
from nrt.lab.settings import ARITHMETIC, data_settings, prepare
from nrt.lab.world import FAMILIES, distinct_problems
from nrt.models import load_model
from nrt.run import Run, run_folder
from nrt.system.lock import holder_pid
from nrt.trainer import train
from nrt.trainer.resolve import FREE_ON_RESUME

MODELS = ("miniature", "smollm2")

PAIRS_LINE = " on question–answer pairs: no traces of theirs, no verifier, no judge"


def run_demo(
    console: Console,
    listener: Any,
    *,
    model: str = "miniature",
    run: str | None = None,
    seed: int = 0,
    quick: bool = False,
) -> Run:
    """Train a model, print what it can do before and after, and return the run.

    Called again, it continues a run that was interrupted. Raises InputError for an
    unknown model.

    Args:
        console: receives tables and traces.
        listener: receives the progress of the training; its `close`, if any, is called afterwards.
        model: one of MODELS.
        run: name or path of the run; None: demo, demo-2, … or demo-smollm2, demo-smollm2-2, …
        seed: seed of base model, data and training.
        quick: take only a few steps, to test that everything runs.
    """
    if model not in MODELS:
        raise unknown_name("model of the demo", model, MODELS)
    if model == "miniature":
        families, shown = FAMILIES, ("sum", "bot")
        config = _prepare_miniature(console, seed=seed, quick=quick)
    else:
        families = shown = ARITHMETIC[model].families
        config = _prepare_pretrained(console, model, seed=seed, quick=quick)
    console.print()
    _heading(console, 2, "Native Reasoning Training", PAIRS_LINE)
    result = _train(config, run, "demo" if model == "miniature" else f"demo-{model}", listener)
    console.print()
    _heading(console, 3, "Before and after", ", on questions that were not trained on")
    if quick:
        console.print("(a few steps only: this shows that everything runs, not that it learns)")
    print_accuracy(console, result, families)
    print_traces(console, result, shown)
    console.print(f"\ndone: {result.path}", highlight=False, soft_wrap=True)
    return result


def demo_base(console: Console, *, seed: int, quick: bool = False) -> Path:
    """Return the folder of the miniature's base model, which is built unless it is cached.

    With `quick` its training has only a few steps, so it knows next to nothing.
    """
    settings = BaseSettings(seed=seed)
    if quick:
        stages = tuple(replace(stage, steps=20) for stage in settings.stages)
        settings = replace(settings, stages=stages)
    with console.status("building the base model (once; then it is cached)") as status:

        def progress(step: int, steps: int, loss: float) -> None:
            line = f"base model: step {step}/{steps}, loss {loss:.2f}"
            status.update(line)
            if not console.is_terminal and step % max(1, steps // 10) == 0:  # a log
                console.print(line, highlight=False)

        return build_base(settings, progress=progress)


def demo_config(base: Path, *, seed: int, quick: bool = False) -> Config:
    """Return the recipe `miniature` with this base model and the data of the seed."""
    settings = [
        f"model={base}",
        *data_settings(BaseSettings(seed=seed)),
        f"seed={seed}",
        "eval_every=0",
    ]
    if quick:
        settings += ["heldout.rows=15", "steps=3"]
    return load_config("miniature", settings)


def print_evaluation(console: Console, base: Path, questions: int) -> None:
    """Print how often the base model reasons unprompted, and what reasoning would be worth."""
    model, tokenizer = load_model(str(base), dtype=torch.float32, device="cpu")
    problems = distinct_problems("test", questions, families=FAMILIES)
    table = Table(
        "the base model", "worked traces", "right answers (greedy)", "P(key | worked trace)"
    )
    for row in evaluate_base(model, tokenizer, problems):
        has_work = not math.isnan(row.worked_share)
        table.add_row(
            row.family,
            f"{row.worked_share:.0%}" if has_work else "–",
            f"{row.greedy_accuracy:.0%}",
            f"{row.key_probability:.2f}" if has_work else "–",
        )
    console.print(table)


def print_plain_answers(console: Console, config: Config) -> None:
    """Print how often a pretrained model is right on its own, without markers or training."""
    with console.status("the untrained model answers as plain text"):
        model, tokenizer = load_model(str(config.model), dtype=torch.float32, device="cpu")
        lines = Path(str(config.data.valid)).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[: config.heldout.rows]]
        verdicts = plain_verdicts(model, tokenizer, rows)
    table = Table(
        "the untrained model, as plain text", "right answers (95 % interval)", "questions"
    )
    for family, right in verdicts.items():
        table.add_row(family, _interval(right), str(len(right)))
    console.print(table)


def print_accuracy(console: Console, run: Run, families: Sequence[str]) -> None:
    """Print the share of greedy answers that the checker accepts, by family, with intervals."""
    before, after = run.heldout(0), run.heldout()
    table = Table(
        "right answers (95 % interval)", "before", "after", "after, empty trace", "questions"
    )
    for family in families:
        questions = sum(row["source"] == family for row in after)
        table.add_row(
            family,
            _share(before, family, "correct"),
            _share(after, family, "correct"),
            _share(after, family, "correct_null"),
            str(questions),
        )
    console.print(table)


def print_traces(console: Console, run: Run, families: Sequence[str]) -> None:
    """Print one question of each family with trace and answer before and after training."""
    before = {row["id"]: row for row in run.heldout(0)}
    after = run.heldout()
    for family in families:
        row = next((row for row in after if row["source"] == family), None)
        if row is None:
            continue
        console.print(Text(f"\n{row['question']}", style="bold"))
        for time, record in (("before", before[row["id"]]), ("after", row)):
            trace = " ".join(record["trace"].split())  # a pretrained model writes line breaks
            text = Text(f"  {time:<7}")
            text.append(f"{trace or '(empty)'}\n", style="dim")
            text.append(f"          {record['answer'].strip()} ", style="default")
            if record["correct"]:
                text.append("right", style="green")
            else:
                text.append("wrong", style="red")
            console.print(text)


def _prepare_miniature(console: Console, *, seed: int, quick: bool) -> Config:
    _heading(console, 1, "A base model", " that has read worked answers, but seldom writes one")
    base = demo_base(console, seed=seed, quick=quick)
    print_evaluation(console, base, questions=5 if quick else 300)
    return demo_config(base, seed=seed, quick=quick)


def _prepare_pretrained(console: Console, model: str, *, seed: int, quick: bool) -> Config:
    _heading(console, 1, "A pretrained model", " with two worked examples before each question")
    with console.status("fetching the model (once; then it is cached)"):
        settings = [*prepare(model, seed), f"seed={seed}", "eval_every=0"]
    if quick:
        settings += ["heldout.rows=8", "steps=3", "batch=4"]
    config = load_config(model, settings)
    console.print(f"model folder: {config.model}", highlight=False, soft_wrap=True)
    print_plain_answers(console, config)
    return config


def _heading(console: Console, number: int, title: str, text: str) -> None:
    heading = Text(f"{number}. {title}", style="bold")
    heading.append(text, style="not bold")
    console.print(heading)


def _train(config: Config, run: str | None, default_name: str, listener: Any) -> Run:
    """Train or resume, and close the listener afterwards, because it may hold the terminal."""
    name = run or _run_name(default_name, config)
    key = "resume" if _is_unfinished(name, config) else "run"
    try:
        return train(config.model_copy(update={key: name}), listener=listener)
    finally:
        close = getattr(listener, "close", None)
        if close:
            close()


def _run_name(default: str, config: Config) -> str:
    """Return `default`, or the next of default-2, default-3, … that is unused or to be resumed."""
    names = [default, *(f"{default}-{i}" for i in range(2, 1000))]
    return next(
        name for name in names if not run_folder(name).exists() or _is_unfinished(name, config)
    )


def _is_unfinished(name: str, config: Config) -> bool:
    """Return whether a folder holds an interrupted run with the settings of `config`."""
    folder = run_folder(name)
    if not (folder / "config.yaml").is_file() or holder_pid(folder / "lock"):
        return False
    try:
        result = Run(folder)
        run_config = result.config
    except InputError:  # of another version, or damaged
        return False
    if result.is_finished:
        return False
    own, wanted = (each.model_dump(exclude=FREE_ON_RESUME) for each in (run_config, config))
    return own == wanted


def _share(rows: list[dict[str, Any]], family: str, key: str) -> str:
    return _interval([row[key] for row in rows if row["source"] == family])


def _interval(verdicts: Sequence[bool]) -> str:
    if not verdicts:
        return "–"
    share = wilson(sum(verdicts), len(verdicts))
    return f"{share.mean:.0%} ({share.low:.0%}–{share.high:.0%})"
