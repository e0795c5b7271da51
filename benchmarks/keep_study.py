"""Keep the light parts of a study's finished runs: what its tables, plots and reports need.

    python -m benchmarks.keep_study runs/smollm2 docs/results/smollm2

Weights and checkpoints stay behind; `nrt compare` still takes a kept run for finished. Files that
are there already are replaced. With `--small`, for studies of many runs, numbers are rounded to
four digits, and traces, some metrics and the texts of held-out rows stay behind too; a hash in
place of the question still tells questions apart. Of a search for settings only the scores are
kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from nrt.analysis.comparison import question_hash
from nrt.study.runs import is_finished

TRACES = 40
"""Last lines of traces.jsonl that are kept."""

HELDOUT_FIELDS = ("id", "source", "logp", "length", "finished", "correct")
METRICS = (
    "step", "trace/", "reward/", "answer/", "group/", "worked/", "p_key", "advantage", "readout/",
    "optim/grad_norm", "time/step", "heldout/",
)  # fmt: skip
"""Beginnings of the metrics that `--small` keeps."""

CARD = (
    "The weights are not kept here. This folder marks the run as finished, so that `nrt compare` "
    "makes only the tables of it.\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    keep_study(arguments.study, arguments.folder, small=arguments.small)


def keep_study(study: Path, target: Path, *, small: bool) -> None:
    """Copy the results of a study and what its finished runs need."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(study.iterdir()):
        if file.name == "study.yaml":
            _copy_without_home(file, target / file.name)
        elif file.is_file():
            shutil.copy(file, target / file.name)
    for name in ("study.yaml", "results.json"):
        if (study / "search" / name).is_file():
            (target / "search").mkdir(exist_ok=True)
            _copy_without_home(study / "search" / name, target / "search" / name)
    for path in sorted((study / "runs").iterdir()):
        if is_finished(path):
            keep_run(path, target / "runs" / path.name, small=small)
            print(path.name)


def keep_run(run: Path, target: Path, *, small: bool) -> None:
    """Copy config, metrics, the last held-out rows and, unless `small`, the last traces of a run."""
    (target / "heldout").mkdir(parents=True, exist_ok=True)
    (target / "model").mkdir(exist_ok=True)
    _copy_without_home(run / "config.yaml", target / "config.yaml")
    (target / "model" / "README.md").write_text(CARD, encoding="utf-8")
    heldout = max((run / "heldout").glob("step-*.jsonl"))
    if small:
        _copy_rows(heldout, target / "heldout" / heldout.name, HELDOUT_FIELDS)
        _copy_rows(run / "metrics.jsonl", target / "metrics.jsonl", METRICS)
        return
    shutil.copy(heldout, target / "heldout")
    shutil.copy(run / "metrics.jsonl", target)
    traces = run / "traces.jsonl"
    if traces.is_file():
        lines = traces.read_bytes().split(b"\n")[:-1]  # a text may hold other line breaks
        (target / "traces.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[-TRACES:]))


def _copy_rows(file: Path, target: Path, only: Sequence[str]) -> None:
    """Copy JSON lines with only the fields that begin so, and with rounded numbers."""
    with file.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as kept:
        for line in lines:
            whole = json.loads(line)
            row = {
                key: float(f"{value:.4g}") if isinstance(value, float) else value
                for key, value in whole.items()
                if value is not None and key.startswith(tuple(only))
            }
            if "question" in whole:
                row["question"] = question_hash(whole)
            kept.write(json.dumps(row, ensure_ascii=False) + "\n")


def _copy_without_home(file: Path, target: Path) -> None:
    """Copy a file with paths relative to the current folder, or to the home folder."""
    text = file.read_text(encoding="utf-8")
    text = text.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
