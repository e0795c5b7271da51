"""`nrt demo`: a tiny model with latent reasoning learns to use it from question–answer pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nrt.config import Config, load_config
from nrt.lab.base import BaseSettings, build_base
from nrt.lab.evaluation import evaluate_base
from nrt.lab.settings import data_settings
from nrt.lab.world import FAMILIES, distinct_problems
from nrt.models import load_model
from nrt.run import Run, run_folder
from nrt.trainer import train


def run_demo(
    console: Console, listener: Any, *, run: str | None = None, seed: int = 0, quick: bool = False
) -> Run:
    """Train the miniature, print what the model can do before and after, and return the run.

    Args:
        console: receives tables and traces.
        listener: receives the progress of the training; its `close`, if any, is called afterwards.
        run: name or path of the run; None: demo, demo-2, …
        seed: seed of base model, data and training.
        quick: take only a few steps, to test that everything runs.
    """

    def heading(number: int, title: str, text: str) -> None:
        console.print(f"[bold]{number}. {title}[/bold]{text}", highlight=False)

    heading(1, "A base model", " that has read worked answers, but seldom writes one")
    base = demo_base(console, seed=seed, quick=quick)
    print_evaluation(console, base, questions=5 if quick else 300)
    console.print()
    heading(
        2,
        "Native Reasoning Training",
        " on question–answer pairs: no traces, no checker, no judge",
    )
    config = demo_config(base, run or _unused_run_name(), seed=seed, quick=quick)
    result = _train(config, listener)
    console.print()
    heading(3, "Before and after", ", on questions that neither model has seen")
    print_accuracy(console, result)
    print_traces(console, result)
    console.print(f"\nRun folder: {result.path}", highlight=False, soft_wrap=True)
    console.print(f"Ask it:     nrt chat {result.model_dir}", highlight=False, soft_wrap=True)
    return result


def demo_base(console: Console, *, seed: int, quick: bool = False) -> Path:
    """Return the folder of the base model, which is built unless it is cached.

    With `quick` its training has only a few steps, so it knows next to nothing.
    """
    settings = BaseSettings(seed=seed)
    if quick:
        stages = tuple(replace(stage, steps=20) for stage in settings.stages)
        settings = replace(settings, stages=stages)
    with console.status("building the base model (once; then it is cached)") as status:

        def progress(step: int, steps: int, loss: float) -> None:
            status.update(f"base model: step {step}/{steps}, loss {loss:.2f}")

        return build_base(settings, progress=progress)


def demo_config(base: Path, run: str, *, seed: int, quick: bool = False) -> Config:
    """Return the recipe `miniature` with this base model and the data of the seed."""
    settings = [
        f"model={base}",
        *data_settings(BaseSettings(seed=seed)),
        f"run={run}",
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


def print_accuracy(console: Console, run: Run) -> None:
    """Print the share of greedy answers that match the whole reference answer, by family."""
    before, after = run.heldout(0), run.heldout()
    table = Table("right answers", "before", "after", "after, empty trace", "questions")
    for family in FAMILIES:
        questions = sum(row["source"] == family for row in after)
        table.add_row(
            family,
            _share(before, family, "correct"),
            _share(after, family, "correct"),
            _share(after, family, "correct_null"),
            str(questions),
        )
    console.print(table)


def print_traces(console: Console, run: Run) -> None:
    """Print one question of each walk with trace and answer before and after training."""
    before = {row["id"]: row for row in run.heldout(0)}
    after = run.heldout()
    for family in ("sum", "bot"):
        row = next((row for row in after if row["source"] == family), None)
        if row is None:
            continue
        console.print(Text(f"\n{row['question']}", style="bold"))
        for time, record in (("before", before[row["id"]]), ("after", row)):
            text = Text(f"  {time:<7}")
            text.append(f"{record['trace'] or '(empty)'}\n", style="dim")
            text.append(f"          {record['answer']} ", style="default")
            if record["correct"]:
                text.append("right", style="green")
            else:
                text.append("wrong", style="red")
            console.print(text)


def _train(config: Config, listener: Any) -> Run:
    """Train, and close the listener afterwards, because it may hold the terminal."""
    try:
        return train(config, listener=listener)
    finally:
        close = getattr(listener, "close", None)
        if close:
            close()


def _unused_run_name() -> str:
    """Return demo, or demo-2, demo-3, … if it exists."""
    names = ["demo", *(f"demo-{i}" for i in range(2, 1000))]
    return next(name for name in names if not run_folder(name).exists())


def _share(rows: list[dict[str, Any]], family: str, key: str) -> str:
    values = [row[key] for row in rows if row["source"] == family]
    return f"{sum(values) / len(values):.0%}" if values else "–"
