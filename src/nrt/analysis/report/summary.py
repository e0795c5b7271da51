"""Summary of a run: settings, scores before and after training, and what the folder lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.comparison import FamilyValues, values_by_family
from nrt.analysis.report.loaded_run import LoadedRun
from nrt.analysis.stats import DIFFERENCE, SHARE, Interval, mean_interval

MEASURES = {"correct": "accuracy", "logp": "log-probability of the reference, nats per token"}
"""Field of the held-out records → its name on the page."""


@dataclass(frozen=True)
class FamilyScore:
    """One measure in one family of questions. None means not evaluated."""

    family: str
    questions: int
    before: Interval | None
    after: Interval | None
    change: Interval | None  # paired by question
    null: Interval | None  # after training, after the null trace


@dataclass(frozen=True)
class MeasureScores:
    """A measure's scores by family; with several families, their mean is the last one."""

    measure: str
    unit: str
    scores: tuple[FamilyScore, ...]


def run_facts(run: LoadedRun) -> list[tuple[str, str]]:
    """Return (label, value) pairs about a run.

    File names have no folders, because pages are passed on to others.
    """
    setting = run.setting
    starts = run.reader.environment
    first_start = starts[0] if starts else {}
    seconds = sum(record.get("time/step") or 0.0 for record in run.metrics)
    heldout = ""
    if setting("data.valid"):
        heldout = f"{_sources(setting('data.valid'))}, at most {setting('heldout.rows')} rows"
    machine = ", ".join(first_start.get("gpus") or ())
    if not machine and first_start.get("cpus"):
        machine = f"{first_start['cpus']} CPU cores"
    started = str(first_start.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    packages = first_start.get("packages") or {}
    versions = [f"{package} {version}" for package, version in packages.items() if version]
    facts = [
        ("method", run.method),
        ("profile", str(setting("profile", ""))),
        ("model", _without_folders(setting("model"))),
        ("trained on", _sources(setting("data.train"))),
        ("held out", heldout),
        ("status", run_status(run)),
        ("per step", _batch(run)),
        ("learning rate", str(setting("optimizer.lr", ""))),
        ("seed", str(run.seed)),
        ("time in training steps", duration(seconds) if seconds else ""),
        ("machine", machine),
        ("started", started),
        ("software", ", ".join(versions)),
    ]
    return [(label, value) for label, value in facts if value]


def run_status(run: LoadedRun) -> str:
    """Return the run's state and its finished steps."""
    planned = run.setting("steps")
    done = f"{run.steps_done:,}"
    steps = f"{done} of {planned:,} steps" if planned else f"{done} steps"
    return f"{run.reader.state}, {steps}"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds.

    >>> duration(7384.2), duration(63), duration(0.4)
    ('2 h 03 min', '1 min 03 s', '0.4 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remaining_seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {remaining_seconds:02d} s"


def measure_scores(run: LoadedRun) -> tuple[MeasureScores, ...]:
    """Return accuracy and log-probability before and after training, by family of questions.

    A measure that the run does not have is left out, such as accuracy without checked answers.
    """
    measures = (_measure(run, field, unit) for field, unit in MEASURES.items())
    return tuple(measure for measure in measures if measure.scores)


def missing_notes(run: LoadedRun, groups: int) -> list[str]:
    """Return a note for each part of the page that the folder has no data for."""
    notes = []
    if run.config_error:
        notes.append(
            "Settings are shown as written, since this nrt cannot read them all: "
            f"{run.config_error}."
        )
    if not run.reader.environment:
        notes.append(
            "No environment.json: the page cannot show date, machine and package versions."
        )
    if not run.metrics:
        notes.append("No metrics: metrics.jsonl has no lines yet.")
    if not run.reader.model_dir.is_dir():
        notes.append(
            f"No trained model in the folder: the run is {run_status(run)}; "
            "all numbers are of the run so far."
        )
    if not groups and run.method == "sft":
        notes.append(
            "No traces: method sft samples none, so it is absent from the explorer and the "
            "vocabulary."
        )
    elif not groups:
        notes.append(
            "No sampled traces in traces.jsonl (log_traces sets the number of groups per step): "
            "no training groups to explore."
        )
    return notes + _missing_heldout_notes(run)


def _missing_heldout_notes(run: LoadedRun) -> list[str]:
    if not run.heldout_steps:
        return [
            "No held-out evaluation (data.valid was not set, or the run has not reached one): "
            "no before and after, confidence or comparison."
        ]
    notes = []
    if not run.initial_heldout:
        notes.append("No held-out evaluation at step 0: nothing to compare the trained model with.")
    if not run.final_heldout:
        notes.append("No held-out evaluation after step 0 yet: no after.")
    rows = run.final_heldout or run.initial_heldout
    if not rows:
        return notes
    if rows[0].get("correct") is None:
        notes.append("Answers were not checked (heldout.checker): likelihoods only, no accuracy.")
    if not rows[0].get("token_entropy"):
        notes.append(
            "Held-out records have no token_entropy (an older version wrote them): "
            "no token confidence."
        )
    if not rows[0].get("answer_tokens"):
        notes.append(
            "Held-out records have no answer_tokens (an older version wrote them): "
            "before and after is not shaded token by token."
        )
    return notes


def _measure(run: LoadedRun, field: str, unit: str) -> MeasureScores:
    before = values_by_family(run.initial_heldout, field)
    after = values_by_family(run.final_heldout, field)
    null = values_by_family(run.final_heldout, f"{field}_null")
    change: FamilyValues = {}
    for family, values in after.items():
        if family in before:
            change[family] = {
                question: value - before[family][question]
                for question, value in values.items()
                if question in before[family]
            }
    share, difference = (SHARE, DIFFERENCE) if field == "correct" else (None, None)
    families = list(dict.fromkeys([*before, *after]))
    members_of = [(family, [family]) for family in families]
    if len(families) > 1:
        members_of.append(("mean of families", families))
    scores = [
        FamilyScore(
            family=name,
            questions=sum(len((after or before).get(family, ())) for family in members),
            before=_interval(before, members, share),
            after=_interval(after, members, share),
            change=_interval(change, members, difference),
            null=_interval(null, members, share),
        )
        for name, members in members_of
    ]
    return MeasureScores(field, unit, tuple(scores))


def _interval(
    values: FamilyValues, families: Sequence[str], bounds: tuple[float, float] | None
) -> Interval | None:
    """Return the mean over the families, or None if one has no values."""
    if not all(values.get(family) for family in families):
        return None
    by_family = [list(values[family].values()) for family in families]
    return mean_interval([by_family], bounds=bounds)


def _batch(run: LoadedRun) -> str:
    prompts, traces = run.setting("batch"), run.setting("traces")
    if not prompts:
        return ""
    if run.method == "sft" or not traces:
        return f"{prompts} prompts"
    return f"{prompts} prompts × {traces} traces"


def _sources(value: Any) -> str:
    """Format data.train or data.valid: one path, or a list of sources with their weights."""
    if not isinstance(value, list):
        return _without_folders(value)
    parts = []
    for source in value:
        fields = source if isinstance(source, Mapping) else {"path": source}
        weight = f" × {fields['weight']:g}" if fields.get("weight") else ""
        parts.append(_without_folders(fields.get("path")) + weight)
    return ", ".join(parts)


def _without_folders(name: Any) -> str:
    """Return a Hub name unchanged, and a path without its folders."""
    text = str(name or "")
    is_path = (
        text.startswith(("/", ".", "~"))
        or text.count("/") > 1
        or text.endswith((".jsonl", ".json", ".csv", ".parquet", ".gz"))
    )
    return Path(text).name if is_path else text
