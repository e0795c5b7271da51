"""What was trained on what, what came of it, and what the folder does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.comparison import Found, by_family
from nrt.analysis.report.loaded import Loaded
from nrt.analysis.stats import Interval, bootstrap

Record = Mapping[str, Any]

MEASURES = {"correct": "accuracy", "logp": "log-probability of the reference, nats per token"}

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """One measure in one family of questions, before training and after. None: not evaluated then."""

    family: str
    questions: int
    before: Interval | None
    after: Interval | None
    change: Interval | None  # paired by question
    null: Interval | None  # after training, after the null trace


@dataclass(frozen=True)
class Measured:
    """A measure's scores by family; the mean of the families last, where there are several."""

    measure: str
    unit: str
    scores: tuple[Score, ...]


def facts(loaded: Loaded) -> list[tuple[str, str]]:
    """(label, value) of what a reader wants to know first. Folders are left out of file names: pages are passed on."""
    setting, seconds = loaded.setting, sum(record.get("time/step") or 0.0 for record in loaded.metrics)
    start = loaded.run.environment[0] if loaded.run.environment else {}
    packages = start.get("packages") or {}
    machine = ", ".join(start.get("gpus") or ()) or (f"{start['cpus']} CPU cores" if start.get("cpus") else "")
    values = [
        ("method", loaded.method),
        ("profile", str(setting("profile", ""))),
        ("model", _bare(setting("model"))),
        ("trained on", _sources(setting("data.train"))),
        ("held out", f"{_sources(setting('data.valid'))}, first {setting('heldout.rows')} rows" if setting("data.valid") else ""),
        ("status", status(loaded)),
        ("a step", _step(loaded)),
        ("learning rate", str(setting("optimizer.lr", ""))),
        ("seed", str(loaded.seed)),
        ("time in training steps", duration(seconds) if seconds else ""),
        ("machine", machine),
        ("started", str(start.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
        ("software", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
    ]
    return [(label, value) for label, value in values if value]


def status(loaded: Loaded) -> str:
    """How far the run is, as its folder tells."""
    planned = loaded.setting("steps")
    steps = f"{loaded.done:,} of {planned:,} steps" if planned else f"{loaded.done:,} steps"
    if loaded.run.model_dir.is_dir():
        return f"finished, {steps}"
    return f"{'in progress, or its process was killed' if (loaded.run.path / 'lock').exists() else 'stopped'}, {steps}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(7384.2), duration(63), duration(0.4)
    ('2 h 03 min', '1 min 03 s', '0.4 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def scores(loaded: Loaded) -> tuple[Measured, ...]:
    """Accuracy, where answers were checked, and log-probability; each before and after, by family of questions."""
    found = (_measured(loaded, field, unit) for field, unit in MEASURES.items())
    return tuple(measured for measured in found if measured.scores)


def missing(loaded: Loaded, groups: int) -> list[str]:
    """What this page would show if the folder had it, and why it has not."""
    run, notes = loaded.run, []
    rows = loaded.after or loaded.before

    def note(wanted: bool, text: str) -> None:
        if wanted:
            notes.append(text)

    note(bool(loaded.foreign), f"Settings are shown as they stand, since this nrt cannot read them all: {loaded.foreign}.")
    note(not run.environment, "No environment.json: the page cannot say when, where and with which versions it ran.")
    note(not loaded.metrics, "No metrics: metrics.jsonl has no lines yet.")
    note(not run.model_dir.is_dir(), f"No trained model in the folder: the run is {status(loaded)}; all numbers are those up to there.")
    if loaded.method == "sft":
        note(not groups, "No traces: method sft samples none, so it is absent from the explorer and the vocabulary.")
    else:
        note(
            not groups,
            "No sampled traces in traces.jsonl (log_traces says how many groups a step are written): no training groups to explore.",
        )
    if not loaded.evaluations:
        notes.append(
            "No held-out evaluation (data.valid was not set, or it has not come to one): no before and after, confidence or comparison."
        )
        return notes
    note(not loaded.before, "No held-out evaluation at step 0: nothing to compare the trained model with.")
    note(not loaded.after, "No held-out evaluation after step 0 yet: no after.")
    note(bool(rows) and rows[0].get("correct") is None, "Answers were not checked (heldout.checker): likelihoods only, no accuracy.")
    note(
        bool(rows) and not rows[0].get("token_entropy"),
        "Held-out records have no token_entropy (an older version wrote them): no token confidence.",
    )
    note(
        bool(rows) and not rows[0].get("answer_tokens"),
        "Held-out records have no answer_tokens (an older version wrote them): before and after is not shaded token by token.",
    )
    return notes


def _measured(loaded: Loaded, field: str, unit: str) -> Measured:
    before, after = (by_family(records, field) for records in (loaded.before, loaded.after))
    null = by_family(loaded.after, f"{field}_null")
    change = {
        family: {key: value - before[family][key] for key, value in found.items() if key in before[family]}
        for family, found in after.items()
        if family in before
    }
    families = list(dict.fromkeys([*before, *after]))
    groups = [(family, [family]) for family in families] + ([("mean of families", families)] if len(families) > 1 else [])
    return Measured(
        field,
        unit,
        tuple(
            Score(
                family=name,
                questions=sum(len((after or before).get(family, ())) for family in members),
                before=_interval(before, members),
                after=_interval(after, members),
                change=_interval(change, members),
                null=_interval(null, members),
            )
            for name, members in groups
        ),
    )


def _interval(answers: Found, families: Sequence[str]) -> Interval | None:
    if not all(answers.get(family) for family in families):
        return None
    return bootstrap([[list(answers[family].values()) for family in families]], resamples=RESAMPLES)


def _step(loaded: Loaded) -> str:
    prompts, traces = loaded.setting("batch"), loaded.setting("traces")
    if not prompts:
        return ""
    return f"{prompts} prompts" if loaded.method == "sft" or not traces else f"{prompts} prompts × {traces} traces"


def _sources(given: Any) -> str:
    """One path, or a list of sources with their weights."""
    if not isinstance(given, list):
        return _bare(given)
    parts = [source if isinstance(source, Mapping) else {"path": source} for source in given]
    return ", ".join(_bare(part.get("path")) + (f" × {part['weight']:g}" if part.get("weight") else "") for part in parts)


def _bare(name: Any) -> str:
    """A hub name as it is, a path without its folders."""
    text = str(name or "")
    is_path = text.startswith(("/", ".", "~")) or text.count("/") > 1 or text.endswith((".jsonl", ".json", ".csv", ".parquet", ".gz"))
    return Path(text).name if is_path else text
