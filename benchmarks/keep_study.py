"""Keep the light parts of a study's finished runs: what its tables, plots and reports need.

    python -m benchmarks.keep_study runs/smollm2 docs/results/smollm2

Weights and checkpoints stay behind; `nrt compare` still takes a kept run for finished. Files that
are there already are replaced.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from nrt.study.runs import is_finished

TRACES = 40
"""Last lines of traces.jsonl that are kept."""

CARD = (
    "The weights are not kept here. This folder marks the run as finished, so that `nrt compare` "
    "makes only the tables of it.\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    keep_study(arguments.study, arguments.folder)
    if (arguments.study / "search").is_dir():
        keep_study(arguments.study / "search", arguments.folder / "search")


def keep_study(study: Path, target: Path) -> None:
    """Copy the results of a study and what its finished runs need."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(study.iterdir()):
        if file.name == "study.yaml":
            _copy_without_home(file, target / file.name)
        elif file.is_file():
            shutil.copy(file, target / file.name)
    for path in sorted((study / "runs").iterdir()):
        if is_finished(path):
            keep_run(path, target / "runs" / path.name)
            print(path.name)


def keep_run(run: Path, target: Path) -> None:
    """Copy config, metrics, the last traces and the last held-out rows of a run."""
    (target / "heldout").mkdir(parents=True, exist_ok=True)
    (target / "model").mkdir(exist_ok=True)
    _copy_without_home(run / "config.yaml", target / "config.yaml")
    shutil.copy(run / "metrics.jsonl", target)
    (target / "model" / "README.md").write_text(CARD, encoding="utf-8")
    shutil.copy(max((run / "heldout").glob("step-*.jsonl")), target / "heldout")
    traces = run / "traces.jsonl"
    if traces.is_file():
        lines = traces.read_bytes().split(b"\n")[:-1]  # a text may hold other line breaks
        (target / "traces.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[-TRACES:]))


def _copy_without_home(file: Path, target: Path) -> None:
    """Copy a file with paths relative to the current folder, or to the home folder."""
    text = file.read_text(encoding="utf-8")
    text = text.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
