"""What is given the bad input: each target works, or raises one of nrt's own errors; it neither hangs nor leaves anything behind."""

from __future__ import annotations

import atexit
import gzip
import io
import json
import shutil
import socket
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
from rich.console import Console

from nrt.analysis.comparison import compare, comparison_markdown
from nrt.analysis.report.data import build_report
from nrt.analysis.report.page import embedded
from nrt.analysis.report.text import print_report
from nrt.config import (
    Config,
    RowsConfig,
    TextConfig,
    build_config,
    dump_yaml,
    load_config,
    parse_overrides,
    parse_yaml,
)
from nrt.data import load_pairs
from nrt.data.files import find_tables
from nrt.data.sources import iterate_examples
from nrt.data.stats import inspect
from nrt.run import RunWriter, load_run
from nrt.system.manifest import write_manifest
from nrt.trainer import train
from tests.fuzz import inputs
from tests.fuzz.clusters import verl_parts, verl_resumes, verl_runs
from tests.fuzz.folders import eval_folders, judge_folders, replies, studies
from tests.fuzz.forgery import forgery
from tests.fuzz.hostile import bombs, duplicate_keys, links, merge_keys
from tests.fuzz.outcome import Target, assert_unchanged, contents, outcome, verdict
from tests.runs import write_evaluation, write_run
from tests.trainer.conftest import tiny_config, write_model, write_sums

# --- recipes and settings ---


def recipe(rng: Random, folder: Path) -> str:
    """A recipe file; what is taken can be written to a run folder and read from there."""
    file = folder / "recipe.yaml"
    file.write_bytes(inputs.recipe(rng))
    return outcome(lambda: _written_and_read(load_config(str(file))))


def overrides(rng: Random, folder: Path) -> str:
    given = inputs.overrides(rng)
    return outcome(lambda: _written_and_read(build_config(parse_overrides(given))))


def _written_and_read(config: Config) -> None:
    text = dump_yaml(config)
    text.encode()
    assert dump_yaml(parse_yaml(text, "config.yaml")) == text


# --- data ---

READINGS = (
    RowsConfig(),
    RowsConfig(answer="after: "),
    RowsConfig(text=TextConfig(stride=2)),
    RowsConfig.model_validate({"columns": {"question": "{question} {source}", "answer": "answer"}}),
)


def data_rows(rng: Random, folder: Path) -> str:
    """JSONL through the readers alone: never an error, but of the settings."""
    file = folder / "rows.jsonl"
    file.write_bytes(inputs.jsonl(rng))
    return outcome(
        lambda: [
            list(iterate_examples(table, READINGS[rng.randrange(4)]))
            for table in find_tables(str(file))
        ]
    )


def data_files(rng: Random, folder: Path) -> str:
    """Files of every kind, checked and tokenised as a run would."""
    file = _data_file(rng, folder)
    settings: dict[str, Any] = {
        "data": {"train": str(file), "on_bad_row": rng.choice(("error", "skip"))},
        "max_prompt_tokens": 300,
    }
    if rng.random() < 0.3:
        settings["data"]["text"] = {
            "stride": 2,
            "prefix_tokens": 5,
            "space": rng.choice(("keep", "drop", "prefix")),
        }
    config = build_config(settings)
    outcome(lambda: inspect(config, "train", None))
    return outcome(
        lambda: [
            pair.answer_ids
            for pair in load_pairs(
                config, "train", _chat(rng.choice(("byte-level", "unigram")))
            ).pairs
        ]
    )


@cache
def _chat(kind: str) -> Any:
    from tests.data.cases import build_case

    return build_case(kind, "chatml").chat


def _data_file(rng: Random, folder: Path) -> Path:
    kind = rng.choice(("jsonl", "json", "csv", "txt", "parquet"))
    packed = rng.choice(("", "", ".gz", ".zst")) if kind != "parquet" else ""
    file = folder / f"rows.{kind}{packed}"
    rows = inputs.rows(rng)
    if kind == "parquet":
        try:
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)]), file
            )
        except (
            pyarrow.ArrowException,
            UnicodeEncodeError,
            TypeError,
            OverflowError,
            ValueError,
        ):  # no such table can be written
            pyarrow.parquet.write_table(
                pyarrow.table({"question": [b"\xff", b"one"], "answer": [1.5, None]}), file
            )
        data = file.read_bytes()
    elif kind == "csv":
        data = b"question,answer,source\n" + b"".join(
            ",".join(str(cell) for cell in row.values()).encode("utf-8", "surrogatepass") + b"\n"
            for row in rows
            if isinstance(row, dict)
        )
    elif kind == "txt":
        data = json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")
    else:
        data = (
            json.dumps(rows if rng.random() < 0.5 else {"rows": rows, "more": []}).encode()
            if kind == "json"
            else inputs.jsonl(rng)
        )
    if kind != "parquet" and rng.random() < 0.3:
        data = inputs.damaged(rng, data)
    if packed and rng.random() < 0.9:  # else: a compression that it does not have
        data = (
            gzip.compress(data)
            if packed == ".gz"
            else pyarrow.compress(data, codec="zstd", asbytes=True)
        )
    file.write_bytes(inputs.damaged(rng, data) if rng.random() < 0.4 else data)
    return file


# --- run folders ---


def metrics_lines(rng: Random, folder: Path) -> str:
    """Lines of a run's files, through the readers alone."""
    (folder / "config.yaml").write_text("method: sft\n")
    (folder / "heldout").mkdir()
    for name in ("metrics.jsonl", "warnings.jsonl", "heldout/step-000001.jsonl"):
        lines = b"".join(json.dumps(_line(rng, name)).encode() + b"\n" for _ in range(3))
        (folder / name).write_bytes(inputs.damaged(rng, lines) if rng.random() < 0.5 else lines)
    run = load_run(folder)
    found = [outcome(read) for read in (run.metrics, run.warnings, run.heldout)]
    return verdict(found)


def _line(rng: Random, name: str) -> Any:
    line: dict[str, Any] = {"step": rng.randrange(9)}
    line |= (
        {"kind": "collapse", "message": "x", "count": 2}
        if name == "warnings.jsonl"
        else {"id": "a:1", "loss/total": 0.5, "reward/gain": None}
    )
    return inputs.reshaped(rng, line) if rng.random() < 0.5 else line


def run_folders(rng: Random, folder: Path) -> str:
    """A finished run with a file of it damaged, reshaped or swapped with another's, through report, comparison, lock and readers."""
    path = folder / "run"
    shutil.copytree(_finished_run(), path)
    file = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    how = rng.random()
    if how < 0.1:
        file.unlink()
    elif how < 0.2:
        shutil.copy(
            rng.choice(
                sorted(other for other in path.rglob("*") if other.is_file() and other != file)
            ),
            file,
        )
    elif how < 0.5 or file.suffix not in (".json", ".jsonl", ".yaml"):
        file.write_bytes(inputs.damaged(rng, file.read_bytes()))
    elif file.suffix == ".yaml":
        file.write_bytes(inputs.recipe(rng))
    elif file.suffix == ".json":
        file.write_text(json.dumps(inputs.reshaped(rng, json.loads(file.read_text()))))
    else:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(
            "".join(
                json.dumps(inputs.reshaped(rng, line) if rng.random() < 0.5 else line) + "\n"
                for line in lines
            )
        )

    def reopened() -> None:
        with RunWriter.reopen(path, 2):
            pass

    found = [
        outcome(lambda: print_report(build_report([path]), Console(file=io.StringIO(), width=120)))
    ]
    found += [outcome(lambda: embedded(build_report([path, _finished_run()])))]
    found += [
        outcome(
            lambda: comparison_markdown(
                compare({"a": {0: path}, "b": {0: _finished_run()}}, "a", measure="logp")
            )
        )
    ]
    found += [
        outcome(
            lambda: (
                load_run(path).traces(),
                load_run(path).checkpoints(),
                load_run(path).environment,
            )
        ),
        outcome(reopened),
    ]
    return verdict(found)


@cache
def _finished_run() -> Path:
    """A run as training, `nrt eval` and `nrt judge` leave it, without its model; for reading only."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-run-")) / "run"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    write_evaluation(write_run(folder, groups=2, traces=2))
    (folder / "judge").mkdir()
    verdict = {
        "step": 2,
        "quality": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 12,
        "failed": 1,
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "cost": None,
    }
    (folder / "judge" / "judge.json").write_text(
        json.dumps({"judge": {"model": "m"}, "steps": [verdict]})
    )
    (folder / "lock").write_text(
        json.dumps({"pid": 2**22 + 7, "host": socket.gethostname(), "birth": "", "started": ""})
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest").write_text("step-000002\n")
    return folder


def checkpoints(rng: Random, folder: Path) -> str:
    """A run with a file of its last checkpoint damaged, reshaped, gone or another run's, under a manifest that fits, or does not; resumed.

    Refused, nothing has changed: the files are what they were.
    """
    path = folder / "run"
    shutil.copytree(_interrupted_run(0), path)
    last = sorted((path / "checkpoints").glob("step-*"))[-1]
    file = rng.choice(sorted(file for file in last.rglob("*") if file.is_file()))
    how = rng.random()
    if how < 0.1:
        file.unlink()
    elif how < 0.2:
        shutil.copy(_interrupted_run(1) / file.relative_to(path), file)
    elif how < 0.25:
        shutil.rmtree(last)
        shutil.copytree(_interrupted_run(1) / last.relative_to(path), last)
    elif how < 0.7 and file.suffix == ".json":
        file.write_text(json.dumps(inputs.reshaped(rng, json.loads(file.read_text()))))
    else:
        file.write_bytes(inputs.damaged(rng, file.read_bytes()))
    if rng.random() < 0.7 and (last / "manifest.json") != file:
        write_manifest(last)
    before = contents(path)
    found = outcome(lambda: train(load_run(path).config.model_copy(update={"resume": str(path)})))
    if found == "refused":
        assert_unchanged(path, before)
    return found


@cache
def _interrupted_run(seed: int) -> Path:
    """A tiny run of two steps with a checkpoint after each, cut before its end; for reading only."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoints-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = tiny_config(
        write_model(folder / "model"),
        write_sums(folder / "pairs.jsonl"),
        folder / "run",
        seed=seed,
        steps=2,
        save_every=1,
        eval_every=0,
    )
    shutil.rmtree(train(config).path / "model")
    return folder / "run"


CHEAP: dict[str, Target] = {
    "recipe": recipe,
    "overrides": overrides,
    "data rows": data_rows,
    "metrics lines": metrics_lines,
    "replies": replies,
    "merge keys": merge_keys,
    "duplicate keys": duplicate_keys,
}
"""A millisecond or a few each."""

DEARER: dict[str, Target] = {
    "data files": data_files,
    "run folders": run_folders,
    "checkpoints": checkpoints,
    "forgery": forgery,
    "eval folders": eval_folders,
    "judge folders": judge_folders,
    "studies": studies,
    "verl runs": verl_runs,
    "links": links,
    "bombs": bombs,
}
"""Tens of milliseconds and more."""

if find_spec("verl"):
    DEARER |= {"verl resumes": verl_resumes, "verl parts": verl_parts}
