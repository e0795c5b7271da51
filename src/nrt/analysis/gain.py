"""What a trace adds to the likelihood of what follows, on held-out text.

    python -m nrt.analysis.gain RUN…

Records of one document are not independent: each document counts once, with the mean of its cuts, and the intervals are over documents.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from nrt.analysis.stats import Interval, bootstrap
from nrt.run import document_id, load_run, run_folder

Record = Mapping[str, Any]

DIFFERENCES = {"against the null trace": "logp_null", "against another's trace": "logp_swapped"}


@dataclass(frozen=True)
class Gain:
    """Means over documents, nats a token of y*; None where the run did not measure it."""

    documents: int
    logp: Interval
    against: Mapping[str, Interval | None]  # as in DIFFERENCES


def gain(records: Sequence[Record]) -> Gain:
    """The gain of one held-out evaluation."""
    against = {name: _difference(records, field) for name, field in DIFFERENCES.items()}
    means = _by_document(records, lambda record: record["logp"])
    return Gain(len(means), bootstrap([[means]]), against)


def gains(records: Sequence[Record]) -> dict[str, Gain]:
    """By source, and of `all` where there are several."""
    by_source: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_source[record["source"] or "all"].append(record)
    found = {source: gain(part) for source, part in sorted(by_source.items())}
    return found | ({"all": gain(records)} if len(found) > 1 else {})


def _difference(records: Sequence[Record], field: str) -> Interval | None:
    if any(record[field] is None for record in records):
        return None
    return bootstrap([[_by_document(records, lambda record: record["logp"] - record[field])]])


def _by_document(records: Sequence[Record], value: Any) -> list[float]:
    documents: dict[str, list[float]] = defaultdict(list)
    for record in records:
        documents[document_id(record["id"])].append(value(record))
    return [fmean(values) for values in documents.values()]


def main() -> None:
    table = Table("run", "step", "source", "documents", "log-prob a token", *DIFFERENCES)
    for name in sys.argv[1:]:
        run = load_run(run_folder(name))
        steps = run.heldout_steps()
        for step in dict.fromkeys((steps[0], steps[-1])):
            for source, found in gains(run.heldout(step)).items():
                cells = [f"{i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" if i else "–" for i in (found.logp, *found.against.values())]
                table.add_row(name, str(step), source, str(found.documents), *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
