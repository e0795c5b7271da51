"""`nrt demo`: a tiny model whose reasoning is latent learns to use it, from question–answer pairs alone."""

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
from nrt.lab.base import BaseSettings, build_base, readout
from nrt.lab.settings import pairs
from nrt.lab.world import FAMILIES, distinct
from nrt.models import load_model
from nrt.run import Run, run_folder
from nrt.training import Listener, train


def run_demo(console: Console, listener: Any, *, run: str | None = None, seed: int = 0, quick: bool = False) -> Run:
    """Builds (or finds) the base model, prints what it can do, trains it, prints what it can do then."""
    console.print("[bold]1. A base model[/bold] that has read worked answers, but seldom writes one", highlight=False)
    base = demo_base(console, seed=seed, quick=quick)
    print_readout(console, base, questions=5 if quick else 300)
    console.print("\n[bold]2. Native Reasoning Training[/bold] on question–answer pairs: no traces, no checker, no judge", highlight=False)
    config = demo_config(base, run or fresh_name(), seed=seed, quick=quick)
    result = train_with(listener, config)
    console.print("\n[bold]3. Before and after[/bold], on questions that neither model has seen", highlight=False)
    print_accuracy(console, result)
    print_traces(console, result)
    console.print(f"\nRun folder: {result.path}", highlight=False, soft_wrap=True)
    console.print(f"Ask it:     nrt chat {result.model_dir}", highlight=False, soft_wrap=True)
    return result


def demo_base(console: Console, *, seed: int, quick: bool = False) -> Path:
    """The latent base of docs/miniature.md; with `quick` one of a few steps, which knows next to nothing."""
    settings = BaseSettings(seed=seed)
    if quick:
        settings = replace(settings, stages=tuple(replace(stage, steps=20) for stage in settings.stages))
    with console.status("building the base model (once; then it is cached)") as status:
        return build_base(settings, progress=lambda step, steps, loss: status.update(f"base model: step {step}/{steps}, loss {loss:.2f}"))


def demo_config(base: Path, run: str, *, seed: int, quick: bool = False) -> Config:
    """The packaged recipe `miniature` on the base model of that seed."""
    settings = [f"model={base}", *pairs(BaseSettings(seed=seed)), f"run={run}", f"seed={seed}", "eval_every=0"]
    return load_config("miniature", [*settings, *(["heldout.rows=15", "steps=3"] if quick else [])])


def train_with(listener: Listener, config: Config) -> Run:
    """Trains under a listener that may hold the terminal, and lets go of it."""
    try:
        return train(config, listener=listener)
    finally:
        close = getattr(listener, "close", None)
        if close:
            close()


def fresh_name() -> str:
    """demo, or demo-2, demo-3, …"""
    names = ["demo", *(f"demo-{i}" for i in range(2, 1000))]
    return next(name for name in names if not run_folder(name).exists())


def print_readout(console: Console, base: Path, questions: int) -> None:
    """What the base can do: how often it reasons unasked, and what reasoning would be worth."""
    model, tokenizer = load_model(str(base), dtype=torch.float32, device="cpu")
    table = Table("the base model", "worked traces", "right answers (greedy)", "P(key | worked trace)")
    for line in readout(model, tokenizer, distinct("test", questions, families=FAMILIES)):
        worked = "–" if math.isnan(line.worked) else f"{line.worked:.0%}"
        table.add_row(line.family, worked, f"{line.greedy:.0%}", f"{line.key_given_gold:.2f}" if worked != "–" else "–")
    console.print(table)


def print_accuracy(console: Console, run: Run) -> None:
    """Greedy exact match of the whole answer by family."""
    before, after = run.heldout(0), run.heldout()
    table = Table("right answers", "before", "after", "after, empty trace", "questions")
    for family in FAMILIES:
        columns = [_share(before, family, "correct"), _share(after, family, "correct"), _share(after, family, "correct_null")]
        count = sum(row["source"] == family for row in after)
        table.add_row(family, *columns, str(count))
    console.print(table)


def print_traces(console: Console, run: Run, per_family: int = 1) -> None:
    """The same question before and after."""
    before = {row["id"]: row for row in run.heldout(0)}
    for family in ("sum", "bot"):
        rows = [row for row in run.heldout() if row["source"] == family][:per_family]
        for row in rows:
            console.print(Text(f"\n{row['question']}", style="bold"))
            for when, record in (("before", before[row["id"]]), ("after", row)):
                text = Text(f"  {when:<7}")
                text.append(f"{record['trace'] or '(empty)'}\n", style="dim")
                text.append(f"          {record['answer']} ", style="default")
                text.append("right" if record["correct"] else "wrong", style="green" if record["correct"] else "red")
                console.print(text)


def _share(rows: list[dict[str, Any]], family: str, key: str) -> str:
    values = [row[key] for row in rows if row["source"] == family]
    return f"{sum(values) / len(values):.0%}" if values else "–"
