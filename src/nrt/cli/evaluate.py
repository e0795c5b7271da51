"""`nrt eval`: read the rows, answer what is missing, grade, write the results, compare models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nrt.analysis.benchmarks import (
    BenchmarkScore,
    benchmark_scores,
    difference_table,
    mean_score,
    percent,
    score_table,
    thinking_table,
)
from nrt.cli.common import print_next, run_argument
from nrt.errors import InputError, Interrupted
from nrt.eval.asking import Backend, ask_missing
from nrt.eval.harness import Decoding, Record
from nrt.eval.questions import ReplyStore
from nrt.eval.reasoner import ModelSource, find_model
from nrt.eval.sandbox import describe_confinement
from nrt.eval.sentences import splitter_name
from nrt.eval.suite import NINE, TITLES, EvalPlan, prepare, resolve
from nrt.run.layout import shorten_paths
from nrt.system.disk_errors import explain_disk_errors
from nrt.system.environment import describe_environment
from nrt.system.files import model_fingerprint, read_bounded, remove_folder, write_file
from nrt.system.terminal import print_markdown

TEN = (*NINE, "humaneval-plus")
"""Benchmarks whose mean may be the paper's Overall for both Llama models (docs/eval.md)."""


def evaluate_models(
    console: Console,
    models: Sequence[str],
    *,
    suite: str = "paper",
    benchmarks: str = "",
    data: Path | None = None,
    limit: int = 0,
    seeds: int = 1,
    decoding: Decoding,
    backend: Backend,
    output: Path | None = None,
) -> dict[str, list[BenchmarkScore]]:
    """Evaluate models, write their results, print tables, and return the scores by model.

    Raises InputError for unknown names and for rows that cannot be read, before a model is opened.
    """
    if output and len(models) > 1:
        raise InputError("--output is the folder of one model; leave it out for several models")
    names = resolve(suite, benchmarks)
    sources = [find_model(model) for model in models]
    with console.status("reading the rows"):
        folder_of_rows = str(data) if data else None
        plan = prepare(names, decoding, folder=folder_of_rows, limit=limit, seeds=seeds)
    tools = _tools(names)
    records: dict[str, list[Record]] = {}
    for source in sources:
        folder = output or eval_folder(source)
        model_plan = plan if source.thinks else plan.without_null()
        with explain_disk_errors(folder, "run the same command again; all replies are kept"):
            fingerprint = model_fingerprint(
                source.folder, thinks=source.thinks, backend=backend.backend
            )
            replies = ReplyStore(folder / "replies" / fingerprint)
            _answer_questions(console, source, model_plan, replies, backend)
            remove_rows_of_other_weights(folder, fingerprint)
            with console.status(f"{source.name}: grading"):
                records[source.name] = write_rows(folder, model_plan, replies)
            settings = _settings(source, decoding, backend, limit, seeds, data) | tools
            write_scores(folder, source, fingerprint, records[source.name], settings)
        written = f"written to {folder}: eval.md, eval.json, rows/"
        console.print(written, highlight=False, soft_wrap=True)
    scores = {name: benchmark_scores(rows) for name, rows in records.items()}
    print_markdown(console, score_table(scores, TITLES, NINE))
    if len(records) > 1:
        print_markdown(console, difference_table(records, TITLES))
    runs = [run_argument(run) for source in sources if (run := run_of(source))]
    if runs and not output:  # the report reads only RUN/eval
        print_next("report", *runs)
    else:
        print_next("chat", models[0])
    return scores


def eval_folder(source: ModelSource) -> Path:
    """Return RUN/eval for the model of a run, and evals/NAME for other models."""
    run = run_of(source)
    return run / "eval" if run else Path("evals") / source.name.strip("/.").replace("/", "--")


def run_of(source: ModelSource) -> Path | None:
    """Return the run folder that the model is the trained model of, or None."""
    folder = Path(source.folder)
    is_of_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    return folder.parent if is_of_run else None


def remove_rows_of_other_weights(folder: Path, fingerprint: str) -> None:
    """Remove rows/ if eval.json is of another model: a run that was trained further has one."""
    file = folder / "eval.json"
    if not file.is_file():
        return
    try:
        evaluated = json.loads(read_bounded(file)).get("fingerprint")
    except (ValueError, AttributeError):
        evaluated = None
    if evaluated != fingerprint and (folder / "rows").is_dir():
        remove_folder(folder / "rows")


def write_rows(folder: Path, plan: EvalPlan, replies: ReplyStore) -> list[Record]:
    """Write rows/BENCHMARK.jsonl (question, replies and score of each row); return all records."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    records = []
    for name, rows in plan.records(replies):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_file(folder / "rows" / f"{name}.jsonl", lines)
        records += rows
    return records


def write_scores(
    folder: Path,
    source: ModelSource,
    fingerprint: str,
    records: Sequence[Record],
    settings: Mapping[str, Any],
) -> None:
    """Write eval.json and eval.md."""
    scores = benchmark_scores(records)
    means = {"mean_of_nine": mean_score(scores, NINE), "mean_of_ten": mean_score(scores, TEN)}
    document = {
        "model": source.name,
        "fingerprint": fingerprint,
        "settings": settings,
        "scores": [asdict(score) for score in scores],
    }
    for name, mean in means.items():
        document[name] = asdict(mean) if mean else None
    document["environment"] = describe_environment()
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    write_file(folder / "eval.json", [text])
    lines = [f"# {shorten_paths(source.name)}\n", thinking_table(scores, TITLES)]
    for name, mean in means.items():
        if mean:
            lines.append(f"{name.replace('_', ' ')}: {percent(mean)}\n")
    lines.append("\n".join(f"- {key}: {value}" for key, value in settings.items()) + "\n")
    write_file(folder / "eval.md", ["\n".join(lines)])


def _answer_questions(
    console: Console,
    source: ModelSource,
    plan: EvalPlan,
    replies: ReplyStore,
    backend: Backend,
) -> None:
    """Answer the questions that have no reply yet, under a progress bar."""
    questions = list({question.key: question for question in plan.questions()}.values())
    answered = len(questions) - len(replies.missing(questions))
    columns = (
        TextColumn(source.name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(questions), completed=answered)
        try:
            ask_missing(source, questions, replies, backend, lambda count: bar.advance(task, count))
        except KeyboardInterrupt:
            raise Interrupted(
                "all replies are kept; run the same command again to continue"
            ) from None


def _settings(
    source: ModelSource,
    decoding: Decoding,
    backend: Backend,
    limit: int,
    seeds: int,
    data: Path | None,
) -> dict[str, Any]:
    """Return the settings that decide the scores, for eval.json and eval.md."""
    rows = data.absolute().name if data else "of the hub"
    if limit:
        rows += f", {limit} of each benchmark, chosen by content"
    trace = "none"
    if source.thinks:
        trace = f"at most {decoding.max_trace_tokens} tokens"
    answers = "as long as each task allows"
    if decoding.max_answer_tokens:
        answers = f"at most {decoding.max_answer_tokens} tokens, whatever a task allows"
    temperature: float | str = "as each task has it"
    if decoding.temperature is not None:
        temperature = decoding.temperature
    return {
        "thinks": source.thinks,
        "backend": backend.backend,
        "rows": rows,
        "seeds": seeds,
        "trace": trace,
        "answers": answers,
        "temperature": temperature,
    }


def _tools(names: Sequence[str]) -> dict[str, str]:
    """Return how programs are confined and sentences split, where a benchmark needs it.

    Raises InputError or RunError, before hours of answers, if that is not possible here.
    """
    tools = {}
    if any(name.startswith("humaneval") for name in names):
        tools["HumanEval's programs"] = describe_confinement()
    if any(name.startswith("ifeval") for name in names):
        tools["IFEval's sentences"] = splitter_name()
    return tools
