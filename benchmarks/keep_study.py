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
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(arguments.study.iterdir()):
        if file.is_file():
            shutil.copy(file, arguments.folder / file.name)
    for path in sorted((arguments.study / "runs").iterdir()):
        if is_finished(path):
            keep_run(path, arguments.folder / "runs" / path.name)
            print(path.name)


def keep_run(run: Path, target: Path) -> None:
    """Copy config, metrics, the last traces and the last held-out rows of a run."""
    (target / "heldout").mkdir(parents=True, exist_ok=True)
    (target / "model").mkdir(exist_ok=True)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    config = config.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")
    (target / "config.yaml").write_text(config, encoding="utf-8")
    shutil.copy(run / "metrics.jsonl", target)
    (target / "model" / "README.md").write_text(CARD, encoding="utf-8")
    shutil.copy(max((run / "heldout").glob("step-*.jsonl")), target / "heldout")
    traces = run / "traces.jsonl"
    if traces.is_file():
        lines = traces.read_text(encoding="utf-8").splitlines(keepends=True)
        (target / "traces.jsonl").write_text("".join(lines[-TRACES:]), encoding="utf-8")


if __name__ == "__main__":
    main()
