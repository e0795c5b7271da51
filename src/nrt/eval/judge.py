"""`nrt judge`: a language model scores traces of held-out questions (Appendix H, Figure 2 e, f).

    RUN/heldout/step-000100.jsonl --sample rows--> prompts --judge--> RUN/judge/step-000100.jsonl
                                                                      RUN/judge/judge.json

`Run.metrics` adds the mean scores as `judge/quality`, so reports and figures show them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from operator import index
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from nrt.analysis.stats import SHARE, mean_interval
from nrt.errors import InputError, RunError
from nrt.eval.judge_model import TEMPERATURE, open_judge
from nrt.eval.judge_requests import REPEAT, request_all
from nrt.eval.verdict import PROMPT_SHA256, JudgeOutcome, fill_prompt
from nrt.run import Record, Run, explain_unreadable_files, load_run, step_name
from nrt.run.lines import JUDGE_FIX, to_line
from nrt.system.disk_errors import explain_disk_errors
from nrt.system.files import read_bounded, remove_leftovers, write_file

Price = tuple[float, float]
"""Dollars per million tokens of prompt and of completion."""


@dataclass(frozen=True)
class JudgeRequest:
    """One row of a held-out evaluation and its filled prompt."""

    id: str
    source: str
    prompt: str


@dataclass(frozen=True)
class JudgedStep:
    """One held-out evaluation: its sampled rows, in file order, with the judge's outcomes."""

    run: Run
    step: int
    rows: tuple[tuple[JudgeRequest, JudgeOutcome], ...]

    @property
    def scores(self) -> list[float]:
        return [outcome.score for _, outcome in self.rows if outcome.score is not None]

    @property
    def quality(self) -> float | None:
        """Mean score, in [0, 1], of the rows with a verdict."""
        return fmean(self.scores) if self.scores else None

    @property
    def failed(self) -> list[tuple[JudgeRequest, JudgeOutcome]]:
        """Rows without a verdict, which are not in the mean."""
        return [(request, outcome) for request, outcome in self.rows if outcome.score is None]

    def summary(self, price: Price | None) -> Record:
        """Return this step's entry in judge.json (docs/run-folder.md).

        The interval of the mean score covers the choice of rows, but neither seeds nor the judge.
        """
        outcomes = [outcome for _, outcome in self.rows]
        new = [outcome for outcome in outcomes if not outcome.cached]
        interval = mean_interval([[self.scores]], bounds=SHARE) if len(self.scores) > 1 else None
        return {
            "step": self.step, "quality": self.quality,
            "low": interval and interval.low, "high": interval and interval.high,
            "n": len(self.scores), "failed": len(self.failed),
            **_usage(outcomes, price), "now": _usage(new, price),
        }  # fmt: skip


def _usage(outcomes: Sequence[JudgeOutcome], price: Price | None) -> Record:
    prompt = sum(outcome.prompt_tokens for outcome in outcomes)
    completion = sum(outcome.completion_tokens for outcome in outcomes)
    cost = (prompt * price[0] + completion * price[1]) / 1e6 if price else None
    return {"prompt_tokens": prompt, "completion_tokens": completion, "cost": cost}


def judge_runs(
    console: Console, names: Sequence[str | Path], *, model: str, url: str = "", steps: str = "",
    samples: int = 100, seed: int = 0, jobs: int = 8, price: str = "",
    key_env: str = "OPENAI_API_KEY", retries: int = 3, max_tokens: int = 1024,
) -> list[JudgedStep]:  # fmt: skip
    """Judge `samples` held-out rows of each run and step, write RUN/judge/ and print a table.

    `model` is a name behind `url`, or without a URL a folder. `steps` is text such as "0,50,100";
    empty means all. `price` is "IN,OUT" in dollars per million tokens. Raises InputError before the
    first request, RunError if no row got a verdict, Interrupted on Ctrl-C.
    """
    for option, value in {"samples": samples, "jobs": jobs, "max-tokens": max_tokens}.items():
        if value < 1:
            raise InputError(f"--{option} {value}: give at least 1")
    if retries < 0:
        raise InputError(f"--retries {retries}: give at least 0")
    chosen_steps, rates = _parse_steps(steps), _parse_price(price)
    runs = {run.path.resolve(): run for run in map(load_run, names)}.values()
    chosen: list[tuple[Run, int, list[JudgeRequest]]] = []
    for run in runs:
        _read_summary(run)  # raises before any request is paid for
        run_steps = chosen_steps or run.heldout_steps()
        if not run_steps:
            raise InputError(f"{run.path} has no held-out evaluation; train with data.valid=FILE")
        chosen += [(run, step, _sample_rows(run, step, samples, seed)) for step in run_steps]
    prompts = [request.prompt for _, _, requests in chosen for request in requests]
    with open_judge(
        model, url=url, key_env=key_env, retries=retries, max_tokens=max_tokens
    ) as judge:
        outcomes = request_all(console, judge, prompts, retries=retries, jobs=jobs if url else 1)
    settings = {
        "model": judge.name, "server": judge.server, "prompt_sha256": PROMPT_SHA256,
        "temperature": TEMPERATURE, "max_tokens": max_tokens, "seed": seed, "samples": samples,
    }  # fmt: skip
    judged, remaining = [], iter(outcomes)
    for run, step, requests in chosen:
        rows = zip(requests, islice(remaining, len(requests)), strict=True)
        judged.append(JudgedStep(run, step, tuple(rows)))
    for run in runs:
        with explain_disk_errors(run.path / "judge", REPEAT):
            _write(console, run, settings, [entry for entry in judged if entry.run is run], rates)
    _print_table(console, judged, rates)
    if not any(entry.scores for entry in judged):
        error = judged[0].failed[0][1].error
        raise RunError(f"the judge gave no verdict at all; the first error: {error}")
    return judged


def _parse_steps(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")}) if text.strip() else []
    except ValueError:
        raise InputError(f"--steps {text!r}: give numbers with commas, such as 0,50,100") from None


def _parse_price(text: str) -> Price | None:
    if not text.strip():
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        prompt = completion = -1.0
    if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
        raise InputError(f"--price {text!r}: give IN,OUT in dollars per million tokens, as 0.5,2")
    return prompt, completion


def _sample_rows(run: Run, step: int, samples: int, seed: int) -> list[JudgeRequest]:
    """Return `samples` rows in file order. Raise InputError if there are no traces.

    Each id has a random number that depends only on the seed, and the lowest numbers are taken. So
    runs and steps share their questions, and a larger sample contains the smaller one.
    """
    rows = run.heldout(step)
    with explain_unreadable_files(run.path / "heldout"):
        if all(row["trace"] is None for row in rows):
            reason = f"method {run.config.method} writes none" if rows else "the file is empty"
            raise InputError(f"{run.path} has no traces to judge at step {step}: {reason}")
        numbers = [random.Random(f"{seed} {row['id']}").random() for row in rows]
        chosen = sorted(range(len(rows)), key=numbers.__getitem__)[:samples]
        requests = []
        for row in (rows[i] for i in sorted(chosen)):
            prompt = fill_prompt(row["question"], row["trace"], row["reference"])
            requests.append(JudgeRequest(row["id"], row["source"], prompt))
        return requests


# --- files and table ---


def _read_summary(run: Run) -> Record:
    file = run.path / "judge" / "judge.json"
    if not file.is_file():
        return {"judge": {}, "steps": []}
    with explain_unreadable_files(file, fix=JUDGE_FIX):
        summary = json.loads(read_bounded(file))
        steps = [dict(entry) | {"step": index(entry["step"])} for entry in summary["steps"]]
        return {"judge": dict(summary["judge"]), "steps": steps}


def _write(
    console: Console, run: Run, settings: Record, judged: list[JudgedStep], price: Price | None
) -> None:
    """Write RUN/judge/. Keep other steps of the same judge; delete another judge's verdicts."""
    folder, previous = run.path / "judge", _read_summary(run)
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    steps = {entry["step"]: entry for entry in previous["steps"]}
    if previous["judge"] != settings:
        if steps:
            changed = ", ".join(
                f"{name} {old} → {settings.get(name)}"
                for name, old in previous["judge"].items()
                if old != settings.get(name)
            )
            deleted = ", ".join(map(str, steps))
            text = f"another judge's verdicts at steps {deleted} are deleted ({changed})"
            _print_note(console, f"{folder}: {text}")
        # judge.json goes first: no reader opens the other files without it.
        (folder / "judge.json").unlink(missing_ok=True)
        for file in folder.glob("step-*.jsonl"):
            file.unlink()
        steps = {}
    for entry in judged:
        lines = [
            to_line({"id": request.id, "source": request.source, **asdict(outcome)})
            for request, outcome in entry.rows
        ]
        write_file(folder / f"{step_name(entry.step)}.jsonl", lines)
        steps[entry.step] = entry.summary(price)
    summary = {"judge": settings, "steps": [steps[step] for step in sorted(steps)]}
    write_file(folder / "judge.json", [json.dumps(summary, indent=1, ensure_ascii=False) + "\n"])


def _print_table(console: Console, judged: list[JudgedStep], price: Price | None) -> None:
    """Print one line per evaluation, then the failed rows and the requests of this command."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("run", overflow="fold")
    columns = ["step", "quality", "95 %", "n", "failed", "tokens"]
    for column in [*columns, "cost"] if price else columns:
        table.add_column(column, justify="right", no_wrap=True)
    for entry in judged:
        row = entry.summary(price)
        quality = f"{row['quality']:.3f}" if entry.scores else "–"
        interval = f"{row['low']:.3f} to {row['high']:.3f}" if len(entry.scores) > 1 else "–"
        counts = str(row["n"]), str(row["failed"])
        where = str(entry.run.path), str(entry.step)
        table.add_row(*where, quality, interval, *counts, *_format_usage(row))
    console.print(table)
    failed = [(entry, *row) for entry in judged for row in entry.failed]
    if failed:
        entry, request, outcome = failed[0]
        _print_note(
            console,
            f"Rows without a verdict, not in the mean: {len(failed)}. The first: {entry.run.path}, "
            f"step {entry.step}, {request.id}: {outcome.error}. judge/step-….jsonl has the last "
            "replies; repeat the command to retry them.",
        )
    outcomes = [outcome for entry in judged for _, outcome in entry.rows]
    new = [outcome for outcome in outcomes if not outcome.cached]
    sent, reused = sum(outcome.attempts for outcome in new), len(outcomes) - len(new)
    spent = " for ".join(_format_usage(_usage(new, price)))
    text = f"Requests sent: {sent:,}. Tokens: {spent}. Rows that needed no request: {reused:,}."
    _print_note(console, text)


def _format_usage(usage: Record) -> list[str]:
    tokens = f"{usage['prompt_tokens'] + usage['completion_tokens']:,}"
    return [tokens] if usage["cost"] is None else [tokens, f"${usage['cost']:.4f}"]


def _print_note(console: Console, text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)
