"""`python -m benchmarks.gain RUN…`: how much a trace adds to the likelihood of held-out text.

Records of one document are not independent. Each document counts once, with the mean over its
cuts, and the intervals are over documents.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from nrt.analysis.stats import Interval, mean_interval
from nrt.run import Record, document_id, load_run, run_folder

BASELINES = {"against the null trace": "logp_null", "against another's trace": "logp_swapped"}
"""Column → field of the held-out records that `logp` is compared with."""


@dataclass(frozen=True)
class Gain:
    """Means over documents, in nats per token of y*."""

    documents: int
    logp: Interval
    against: Mapping[str, Interval | None]  # keys of BASELINES; None if the run did not measure it


def gain(records: Sequence[Record]) -> Gain:
    """Return the gain of one held-out evaluation."""
    against: dict[str, Interval | None] = {}
    for column, field in BASELINES.items():
        against[column] = _difference(records, field)
    means = _means_by_document(records, lambda record: record["logp"])
    return Gain(len(means), mean_interval([[means]]), against)


def gains(records: Sequence[Record]) -> dict[str, Gain]:
    """Return the gain by source; with several sources, also that of all records as `all`."""
    by_source: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_source[record["source"] or "all"].append(record)
    result = {source: gain(of_source) for source, of_source in sorted(by_source.items())}
    if len(result) > 1:
        result["all"] = gain(records)
    return result


def _difference(records: Sequence[Record], field: str) -> Interval | None:
    if any(record[field] is None for record in records):
        return None
    means = _means_by_document(records, lambda record: record["logp"] - record[field])
    return mean_interval([[means]])


def _means_by_document(records: Sequence[Record], value: Callable[[Record], float]) -> list[float]:
    documents: dict[str, list[float]] = defaultdict(list)
    for record in records:
        documents[document_id(record["id"])].append(value(record))
    return [fmean(values) for values in documents.values()]


def main() -> None:
    """Print the gains of each run at its first and its last held-out evaluation."""
    table = Table("run", "step", "source", "documents", "log-prob per token", *BASELINES)
    for name in sys.argv[1:]:
        run = load_run(run_folder(name))
        steps = run.heldout_steps()
        for step in dict.fromkeys((steps[0], steps[-1])):
            for source, result in gains(run.heldout(step)).items():
                cells = [_cell(interval) for interval in (result.logp, *result.against.values())]
                table.add_row(name, str(step), source, str(result.documents), *cells)
    Console(width=150).print(table)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main()
