"""`nrt eval`: read the rows, ask what is missing, grade, write rows, eval.json and eval.md, compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nrt.analysis.benchmarks import Score, difference_table, mean_of, percent, score_rows, score_table, thinking_table
from nrt.durable import told_of_disk, write_file
from nrt.environment import describe_environment
from nrt.errors import InputError, RunError
from nrt.eval.asking import Machine, ask_missing, fingerprint
from nrt.eval.harness import Decoding, Record
from nrt.eval.questions import Replies
from nrt.eval.reasoner import Source, find_model
from nrt.eval.sandbox import confinement
from nrt.eval.sentences import splitter
from nrt.eval.suite import NINE, TITLES, Plan, prepare, resolve
from nrt.run.layout import without_folders

TEN = (*NINE, "humaneval-plus")
"""What the paper's Overall of both Llamas may be the mean of (docs/eval.md)."""


class Interrupted(RunError):
    """Ctrl-C came; what was answered is kept."""

    exit_status = 130


def evaluate_models(
    console: Console,
    models: Sequence[str],
    *,
    suite: str = "paper",
    benchmarks: str = "",
    data: Path | None = None,
    limit: int = 0,
    seeds: int = 1,
    how: Decoding,
    machine: Machine,
    output: Path | None = None,
) -> dict[str, list[Score]]:
    """The scores of each model. Raises InputError, before any model is opened, for names that are unknown and rows that cannot be had."""
    if output and len(models) > 1:
        raise InputError("--output is the folder of one model; leave it out for several")
    names = resolve(suite, benchmarks)
    sources = [find_model(model) for model in models]
    with console.status("reading the rows"):
        plan = prepare(names, how, folder=str(data) if data else None, limit=limit, seeds=seeds)
    records: dict[str, list[Record]] = {}
    for source in sources:
        folder = output or eval_folder(source)
        asked = plan if source.thinks else plan.without_null()
        with told_of_disk(folder, "give the same command again; what was answered is kept"):
            replies = Replies(folder / "replies" / fingerprint(source, machine.backend))
            _ask(console, source, asked, replies, machine)
            with console.status(f"{source.name}: grading"):
                records[source.name] = write_rows(folder, asked, replies)
            write_scores(folder, source, records[source.name], _settings(source, how, machine, limit, seeds, data))
        console.print(f"written to {folder}: eval.md, eval.json, rows/", highlight=False, soft_wrap=True)
    scores = {name: score_rows(rows) for name, rows in records.items()}
    console.print(Markdown(score_table(scores, TITLES, NINE)))
    if len(records) > 1:
        console.print(Markdown(difference_table(records, TITLES)))
    return scores


def eval_folder(source: Source) -> Path:
    """RUN/eval for a run; for other models evals/ and their name."""
    if Path(source.folder).name == "model" and (Path(source.folder).parent / "config.yaml").is_file():
        return Path(source.folder).parent / "eval"
    return Path("evals") / source.name.strip("/.").replace("/", "--")


def write_rows(folder: Path, plan: Plan, replies: Replies) -> list[Record]:
    """rows/NAME.jsonl of each benchmark: what was asked, said and made of it."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    records = []
    for name, rows in plan.records(replies):
        write_file(folder / "rows" / f"{name}.jsonl", (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        records += rows
    return records


def write_scores(folder: Path, source: Source, records: Sequence[Record], settings: Mapping[str, Any]) -> None:
    """eval.json and eval.md."""
    scores = score_rows(records)
    means = {"mean_of_nine": mean_of(scores, NINE), "mean_of_ten": mean_of(scores, TEN)}
    document = {"model": source.name, "settings": settings, "scores": [asdict(score) for score in scores]}
    document |= {name: mean and asdict(mean) for name, mean in means.items()}
    document["environment"] = describe_environment()
    write_file(folder / "eval.json", [json.dumps(document, indent=1, ensure_ascii=False) + "\n"])
    lines = [f"# {without_folders(source.name)}\n", thinking_table(scores, TITLES)]
    for name, mean in means.items():
        if mean:
            lines.append(f"{name.replace('_', ' ')}: {percent(mean)}\n")
    lines.append("\n".join(f"- {key}: {value}" for key, value in settings.items()) + "\n")
    write_file(folder / "eval.md", ["\n".join(lines)])


def _ask(console: Console, source: Source, plan: Plan, replies: Replies, machine: Machine) -> None:
    questions = list({question.key: question for question in plan.questions()}.values())
    left = len(replies.missing(questions))
    columns = (TextColumn(source.name), BarColumn(), MofNCompleteColumn(), TextColumn("questions"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(questions), completed=len(questions) - left)
        try:
            ask_missing(source, questions, replies, machine, lambda count: bar.advance(task, count))
        except KeyboardInterrupt:
            raise Interrupted("what was answered is kept; the same command goes on from there") from None


def _settings(source: Source, how: Decoding, machine: Machine, limit: int, seeds: int, data: Path | None) -> dict[str, Any]:
    """All that a reader needs to defend the figures."""
    return {
        "thinks": source.thinks,
        "backend": machine.backend,
        "rows": (data.absolute().name if data else "of the hub") + (f", {limit} of each benchmark, chosen by content" if limit else ""),
        "seeds": seeds,
        "trace": f"at most {how.max_trace_tokens} tokens" if source.thinks else "none",
        "answers": f"at most {how.max_answer_tokens} tokens, whatever a task allows"
        if how.max_answer_tokens
        else "as long as each task allows",
        "temperature": "as each task has it" if how.temperature is None else how.temperature,
        "HumanEval's programs": confinement(),
        "IFEval's sentences": splitter(),
    }
