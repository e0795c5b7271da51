"""The run folder: everything that a run leaves behind, and all that the rest of nrt reads of it. No torch here.

    runs/<name>/  config.yaml   metrics.jsonl   traces.jsonl   heldout/step-000100.jsonl   warnings.jsonl
                  skipped/train.jsonl   checkpoints/step-000100/   model/   environment.json   lock   judge/judge.json

`RunWriter` writes it and holds its lock, `Run` reads it; docs/run-folder.md says what each file holds, field by field.
"""

from __future__ import annotations

from nrt.run.layout import document_id, run_folder, step_name
from nrt.run.lines import Record, as_nrt_writes
from nrt.run.reader import Run, load_run
from nrt.run.writer import Bystander, RunWriter, released_on_error

__all__ = [
    "Bystander", "Record", "Run", "RunWriter", "as_nrt_writes", "document_id", "load_run", "released_on_error", "run_folder", "step_name",
]  # fmt: skip
