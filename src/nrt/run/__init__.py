"""Run folder: everything that a run leaves behind, and all that other parts of nrt read of it.

    runs/<name>/  config.yaml   metrics.jsonl   traces.jsonl   heldout/step-000100.jsonl
                  warnings.jsonl   skipped/train.jsonl   checkpoints/step-000100/   model/
                  environment.json   lock   judge/judge.json

`RunWriter` writes the folder and holds its lock; `Run` reads it. docs/run-folder.md lists the
fields of each file. This package does not import torch.
"""

from __future__ import annotations

from nrt.run.layout import document_id, fresh_run_name, question_id, run_folder, step_name
from nrt.run.lines import Record, explain_unreadable_files
from nrt.run.reader import Run, load_run
from nrt.run.writer import NullWriter, RunWriter, check_free, close_on_error

__all__ = [
    "NullWriter",
    "Record",
    "Run",
    "RunWriter",
    "check_free",
    "close_on_error",
    "document_id",
    "explain_unreadable_files",
    "fresh_run_name",
    "load_run",
    "question_id",
    "run_folder",
    "step_name",
]
