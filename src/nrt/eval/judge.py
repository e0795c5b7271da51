"""What a language model says of the traces of held-out questions: Appendix H of the paper, Table 8, and panels e, f of Figure 2.

    RUN/heldout/step-000100.jsonl --sample N rows--> prompts --judge--> RUN/judge/step-000100.jsonl, RUN/judge/judge.json

`judge_runs` is the command. `Run.metrics` gives the means as `judge/quality`, so whatever draws a run's metrics draws them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from nrt.durable import read_bounded, sweep, told_of_disk
from nrt.errors import InputError, RunError
from nrt.eval.judge_client import TEMPERATURE, Judge, open_judge
from nrt.eval.judge_verdict import PROMPT_SHA256, Outcome, ask_all, fill, write
from nrt.run import Record, Run, as_nrt_writes, load_run, step_name
from nrt.run.lines import JUDGE_AGAIN

INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap."""


class Interrupted(RunError):
    """Ctrl-C came; what the judge had said is in the cache."""

    exit_status = 130


@dataclass(frozen=True)
class Asked:
    """One row of a held-out evaluation, as the judge sees it."""

    id: str
    source: str
    prompt: str


@dataclass(frozen=True)
class Judged:
    """One held-out evaluation and what the judge said of each sampled row, in the order of the file."""

    run: Run
    step: int
    asked: tuple[Asked, ...]
    outcomes: tuple[Outcome, ...]

    @cached_property
    def scores(self) -> list[float]:
        return [outcome.score for outcome in self.outcomes if outcome.score is not None]

    @property
    def quality(self) -> float | None:
        """Mean score, in [0, 1], of the rows that have one."""
        return fmean(self.scores) if self.scores else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of `quality` over the rows; it says nothing about seeds or about the judge."""
        if len(self.scores) < 2:
            return None
        means = np.random.default_rng(0).choice(self.scores, (2000, len(self.scores))).mean(-1)
        low, high = np.percentile(means, INTERVAL)
        return float(low), float(high)

    @property
    def failed(self) -> list[tuple[Asked, Outcome]]:
        """Rows without a verdict: not in the mean."""
        return [(row, outcome) for row, outcome in zip(self.asked, self.outcomes, strict=True) if outcome.score is None]


@dataclass(frozen=True)
class Spent:
    """Requests and tokens, and dollars where prices (per million tokens of prompt and completion) are known."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    price: tuple[float, float] | None

    @classmethod
    def on(cls, outcomes: Iterable[Outcome], price: tuple[float, float] | None) -> Spent:
        found = list(outcomes)
        return cls(
            requests=sum(outcome.attempts for outcome in found),
            prompt_tokens=sum(outcome.prompt_tokens for outcome in found),
            completion_tokens=sum(outcome.completion_tokens for outcome in found),
            price=price,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6

    def record(self) -> Record:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "cost": self.cost}


def judge_runs(
    console: Console,
    names: Sequence[str | Path],
    *,
    model: str,
    url: str = "",
    steps: str = "",
    samples: int = 100,
    seed: int = 0,
    jobs: int = 8,
    price: str = "",
    key_env: str = "OPENAI_API_KEY",
    retries: int = 3,
    max_tokens: int = 1024,
) -> list[Judged]:
    """Judges `samples` held-out rows of each run and step, writes RUN/judge/ and prints the table.

    `model` is a name behind `url`, or without one a folder; `steps` such as "0,50,100", empty for all; `price` "IN,OUT" in dollars per
    million tokens. Raises InputError before anything is asked, RunError where no row got a verdict, Interrupted on Ctrl-C.
    """
    _check_positive(samples=samples, jobs=jobs, max_tokens=max_tokens)
    if retries < 0:
        raise InputError(f"--retries {retries}: give 0 or more")
    wanted, rates = _steps(steps), _price(price)
    runs = {run.path.resolve(): run for run in map(load_run, names)}.values()
    for run in runs:
        _read(run.path / "judge" / "judge.json")  # or an error now, and not when all is paid for
    chosen = [(run, step, _choose(run, step, samples, seed)) for run in runs for step in wanted or _evaluations(run)]
    prompts = [row.prompt for _, _, rows in chosen for row in rows]
    with open_judge(model, url=url, key_env=key_env, retries=retries, max_tokens=max_tokens) as judge:
        outcomes = _ask(console, judge, prompts, retries=retries, jobs=jobs if url else 1)
        settings = {
            "model": judge.name, "server": judge.server, "prompt_sha256": PROMPT_SHA256, "temperature": TEMPERATURE,
            "max_tokens": max_tokens, "seed": seed, "samples": samples,
        }  # fmt: skip
    rest = iter(outcomes)
    judged = [Judged(run, step, rows, tuple(next(rest) for _ in rows)) for run, step, rows in chosen]
    for run in runs:
        with told_of_disk(run.path / "judge", "give the same command again; what the judge said is kept"):
            _write(console, run, settings, [one for one in judged if one.run is run], rates)
    print_judged(console, judged, rates)
    if not any(one.scores for one in judged):
        raise RunError(f"the judge gave no verdict at all; the first fault: {judged[0].failed[0][1].error}")
    return judged


def _ask(console: Console, judge: Judge, prompts: Sequence[str], *, retries: int, jobs: int) -> list[Outcome]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        try:
            return ask_all(
                judge, prompts, retries=retries, jobs=jobs,
                track=lambda done, total: progress.track(done, total=total, description=f"asking {judge.name}"),
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("what the judge has said is kept; the same command goes on from there") from None


# --- which rows ---


def _choose(run: Run, step: int, samples: int, seed: int) -> tuple[Asked, ...]:
    """`samples` rows, in the order of the file. Raises InputError where there are no traces.

    Each id has a random number of its own, drawn from the seed, and the lowest are taken: so all steps and runs are judged by the
    same questions as far as they have them, and more samples are the fewer and some.
    """
    rows = run.heldout(step)
    with as_nrt_writes(run.path / "heldout"):
        if all(row["trace"] is None for row in rows):
            why = f"method {run.config.method} writes none; leave it out" if rows else "the file is empty"
            raise InputError(f"{run.path} has no traces to judge at step {step}: {why}")
        drawn = sorted(range(len(rows)), key=lambda i: random.Random(f"{seed} {rows[i]['id']}").random())
        return tuple(
            Asked(row["id"], row["source"], fill(row["question"], row["trace"], row["reference"]))
            for row in (rows[i] for i in sorted(drawn[:samples]))
        )


def _evaluations(run: Run) -> list[int]:
    steps = run.heldout_steps()
    if not steps:
        raise InputError(f"{run.path} has no held-out evaluation, so no traces to judge; train with data.valid=FILE")
    return steps


def _steps(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")}) if text.strip() else []
    except ValueError:
        raise InputError(f"--steps {text!r}: give numbers separated by commas, such as 0,50,100") from None


def _price(text: str) -> tuple[float, float] | None:
    if not text.strip():
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        prompt = completion = -1.0
    if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
        raise InputError(f"--price {text!r}: give dollars per million tokens of prompt and of completion, such as 0.5,2")
    return prompt, completion


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give at least 1")


# --- written ---


def _write(console: Console, run: Run, settings: Record, judged: Sequence[Judged], price: tuple[float, float] | None) -> None:
    """RUN/judge/: steps judged before by the same judge stay; anything else goes, and the console says so."""
    folder = run.path / "judge"
    before = _read(folder / "judge.json")
    folder.mkdir(exist_ok=True)
    sweep(folder)
    steps = {step["step"]: step for step in before["steps"]}
    if before["judge"] != settings:
        if steps:
            changed = ", ".join(
                f"{name} {old} → {settings.get(name)}" for name, old in before["judge"].items() if old != settings.get(name)
            )
            gone = ", ".join(map(str, steps))
            _say(console, f"{folder}: replaced, since verdicts of two judges are never mixed ({changed}); gone are those of steps {gone}")
        (folder / "judge.json").unlink(missing_ok=True)  # first: without it, nothing reads the others
        for file in folder.glob("step-*.jsonl"):
            file.unlink()
        steps = {}
    for one in judged:
        write(
            folder / f"{step_name(one.step)}.jsonl",
            "".join(_row(row, outcome) for row, outcome in zip(one.asked, one.outcomes, strict=True)),
        )
        steps[one.step] = _summary(one, price)
    text = json.dumps({"judge": settings, "steps": [steps[step] for step in sorted(steps)]}, indent=1, ensure_ascii=False)
    write(folder / "judge.json", text + "\n")


def _read(file: Path) -> Record:
    if not file.is_file():
        return {"judge": {}, "steps": []}
    with as_nrt_writes(file, mend=JUDGE_AGAIN):
        found = json.loads(read_bounded(file))
        return {"judge": dict(found["judge"]), "steps": [dict(one) | {"step": index(one["step"])} for one in found["steps"]]}


def _row(row: Asked, outcome: Outcome) -> str:
    return json.dumps({"id": row.id, "source": row.source, **asdict(outcome)}, ensure_ascii=False) + "\n"


def _summary(one: Judged, price: tuple[float, float] | None) -> Record:
    low, high = one.interval or (None, None)
    return {
        "step": one.step, "quality": one.quality, "low": low, "high": high, "n": len(one.scores), "failed": len(one.failed),
        **Spent.on(one.outcomes, price).record(), "now": Spent.on(_paid([one]), price).record(),
    }  # fmt: skip


def _paid(judged: Sequence[Judged]) -> list[Outcome]:
    return [outcome for one in judged for outcome in one.outcomes if not outcome.cached]


# --- shown ---


def print_judged(console: Console, judged: Sequence[Judged], price: tuple[float, float] | None) -> None:
    """The table; then what failed, and what this command asked for."""
    names = [one.run.path.resolve().name for one in judged]
    unique = len(set(names)) == len({one.run.path.resolve() for one in judged})
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("run", overflow="fold")
    for column in ("step", "quality", "95 %", "n", "failed", "tokens", *(("cost",) if price else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for one, name in zip(judged, names, strict=True):
        spent = Spent.on(one.outcomes, price)
        table.add_row(
            name if unique else str(one.run.path), str(one.step),
            "–" if one.quality is None else f"{one.quality:.3f}",
            f"{one.interval[0]:.3f} to {one.interval[1]:.3f}" if one.interval else "–",
            str(len(one.scores)), str(len(one.failed)), f"{spent.tokens:,}", *_dollars(spent),
        )  # fmt: skip
    console.print(table)
    failed = [(one, row, outcome) for one in judged for row, outcome in one.failed]
    if failed:
        one, row, outcome = failed[0]
        _say(
            console,
            f"Rows without a verdict, in no mean: {len(failed)}. The first: {one.run.path}, step {one.step}, {row.id}: "
            f"{outcome.error}. Their replies stand in judge/step-….jsonl; the same command asks for them again.",
        )
    paid = _paid(judged)
    now, known = Spent.on(paid, price), sum(len(one.outcomes) for one in judged) - len(paid)
    cost = "".join(f", {dollars}" for dollars in _dollars(now))
    _say(console, f"Asked now: {now.requests:,} requests, {now.tokens:,} tokens{cost}; {known:,} rows were known.")


def _dollars(spent: Spent) -> tuple[str, ...]:
    return () if spent.cost is None else (f"${spent.cost:.4f}",)


def _say(console: Console, text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)
