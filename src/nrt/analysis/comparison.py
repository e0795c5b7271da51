"""Comparison of a study's runs: accuracy by variant and family, and paired differences."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import fmean

from nrt.analysis.stats import DIFFERENCE, SHARE, Interval, mean_interval
from nrt.errors import InputError
from nrt.run import Record, Run, explain_unreadable_files, question_id

Question = tuple[str, str]
"""Id, and hash of the texts: seeds may have different files of one name, whose ids agree."""

FamilyValues = dict[str, dict[Question, float]]
"""family → question → value"""

SAME_START = 5e-3
"""Nats a token by which log-probabilities of one model, prompt and answer may differ: threads,
devices and bfloat16. Base models of one seed from two processors were .014 to .2 apart.
"""

MEAN = "mean"
"""Name of the mean over the families, each with the same weight."""


@dataclass(frozen=True)
class ComparisonRow:
    """One variant's result in one family."""

    variant: str
    family: str
    runs: int  # that are done
    questions: int  # of a seed that have the measure
    interval: Interval | None  # None: no run is done, or none has the measure
    by_seed: dict[int, float]
    difference: Interval | None  # from the baseline, over the seeds that both have

    @property
    def missing(self) -> str:
        """Reason why there is no interval."""
        return "not measured" if self.runs else "no run"


@dataclass(frozen=True)
class Try:
    """Settings that a search tried for a variant."""

    settings: tuple[str, ...]
    score: float | None  # mean of the measure over seeds and families; None: a run is missing
    minutes: float  # of its runs' steps
    chosen: bool = False  # its settings are the variant's in the comparison


@dataclass(frozen=True)
class Search:
    """The tries of every variant, on seeds that the comparison does not use."""

    measure: str
    seeds: tuple[int, ...]
    tries: dict[str, tuple[Try, ...]]  # variant → the same number each

    def chosen(self, variant: str) -> Try | None:
        """Return the try that was chosen, the first with the highest score; None if none was."""
        return next((each for each in self.tries.get(variant, ()) if each.chosen), None)


@dataclass(frozen=True)
class Comparison:
    """All rows of a study, and its unfinished runs."""

    baseline: str
    measure: str
    rows: tuple[ComparisonRow, ...]
    missing: dict[str, str]  # run → why it is not in the table
    search: Search | None = None  # for the variants' settings, before the runs
    # Seed → variant → log-probability, nats/token, of held-out answers after the null trace before
    # training: only seeds whose runs differ, as they do after different models or prompts.
    different_starts: dict[int, dict[str, float]] = field(default_factory=dict)


def compare(
    runs: Mapping[str, Mapping[int, Path]],
    baseline: str,
    *,
    measure: str = "correct",
    missing: Mapping[str, str] | None = None,
    search: Search | None = None,
) -> Comparison:
    """Compare runs by their last held-out evaluation.

    `runs` is variant → seed → run folder. `measure` is a field of the held-out records, such as
    correct, correct_null or logp. Raises InputError if no record has it, or if runs of the same
    seed have different questions.
    """
    records: dict[str, dict[int, list[Record]]] = {}
    with explain_unreadable_files(*(path for paths in runs.values() for path in paths.values())):
        for variant, paths in runs.items():
            records[variant] = {seed: Run(path).heldout() for seed, path in paths.items()}
        starts = _different_starts(runs)
    _check_same_questions(records, baseline)
    values = {
        variant: {seed: values_by_family(rows, measure) for seed, rows in by_seed.items()}
        for variant, by_seed in records.items()
    }
    families = list(
        dict.fromkeys(
            family
            for by_seed in values.values()
            for by_family in by_seed.values()
            for family in by_family
        )
    )
    if not families:
        raise InputError(
            f"no held-out record has '{measure}'; set data.valid and heldout.checker, "
            "or choose another measure"
        )
    members_of = {family: [family] for family in families}
    if len(families) > 1:
        members_of[MEAN] = families
    baseline_values = values.get(baseline, {})
    rows = [
        _row(variant, name, members, by_seed, baseline_values, measure)
        for variant, by_seed in values.items()
        for name, members in members_of.items()
    ]
    return Comparison(baseline, measure, tuple(rows), dict(missing or {}), search, starts)


def comparison_json(comparison: Comparison) -> str:
    """Return the content of compare.json."""
    return json.dumps(asdict(comparison), indent=1) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Return the content of compare.md.

    It holds variants × families three times: means with intervals, the value of every seed, and
    paired differences.
    """
    baseline, measure = comparison.baseline, comparison.measure
    text = f"## {measure}, mean over seeds [95 %] (questions of a seed)\n\n"
    text += _table(comparison, lambda row: str(row.interval or row.missing))
    seeds = sorted({seed for row in comparison.rows for seed in row.by_seed})
    text += f"\n## Every seed: {', '.join(map(str, seeds))}\n\n"
    text += _table(comparison, lambda row: _seed_values(row, seeds))
    text += f"\n## Against `{baseline}` [95 %]\n\n"
    text += _table(comparison, lambda row: _signed(row.difference), without=baseline)
    if not any(row.variant == baseline and row.interval for row in comparison.rows):
        text += f"\nNo differences: no run of `{baseline}` has {measure}.\n"
    text += (
        "\nIntervals: Student's t over seeds, and over questions Wilson's for shares and t for "
        "other values; a question that several seeds share counts once. Each is the interval of "
        "one comparison: of twenty, one may exclude 0 by chance. Differences are paired by seed "
        f"and question; the baseline `{baseline}` was written to study.yaml before the runs.\n"
    )
    text += _starts_text(comparison.different_starts)
    if comparison.search:
        text += "\n## Search for settings\n\n" + _search_table(comparison.search)
    if comparison.missing:
        lines = [f"- `{run}`: {reason}\n" for run, reason in comparison.missing.items()]
        text += "\nNot in the table:\n\n" + "".join(lines)
    return text


def _table(
    comparison: Comparison, format_cell: Callable[[ComparisonRow], str], without: str = ""
) -> str:
    """Return a table with one line per variant and one column per family and its questions."""
    questions: dict[str, int] = {}
    for row in comparison.rows:
        questions[row.family] = max(row.questions, questions.get(row.family, 0))
    families = [f"{family} ({count})" for family, count in questions.items()]
    cells_of: dict[str, list[str]] = defaultdict(list)
    for row in comparison.rows:
        if row.variant != without:
            cells_of[row.variant].append(format_cell(row))
    head = f"| | {' | '.join(map(_escape, families))} |\n|{'---|' * (len(families) + 1)}\n"
    lines = [
        f"| `{_escape(variant)}` | {' | '.join(cells)} |\n" for variant, cells in cells_of.items()
    ]
    return head + "".join(lines)


def _escape(name: str) -> str:
    """Escape `|`, which would end a table cell."""
    return name.replace("|", "\\|")


def _search_table(search: Search) -> str:
    """Return a table with the settings and scores of all tries and the cost of each variant."""
    seeds = ", ".join(map(str, search.seeds))
    number = len(next(iter(search.tries.values())))
    text = (
        f"{number} tries for each, on seed {seeds}, which the tables above do not use. The tables "
        f"have the try with the highest {search.measure}, in bold; of equal ones the first. A try "
        "without a score failed, or is not finished.\n\n"
        f"| |{' |' * number} minutes of training |\n|---|{'---|' * number}---|\n"
    )
    for variant, tries in search.tries.items():
        minutes = sum(each.minutes for each in tries)
        cells = [f"`{_escape(variant)}`", *map(_try_cell, tries), f"{minutes:.1f}"]
        text += f"| {' | '.join(cells)} |\n"
    return text


def _try_cell(each: Try) -> str:
    settings = _escape(" ".join(each.settings))
    score = "–" if each.score is None else f"{each.score:.3f}"
    return f"`{settings}` **{score}**" if each.chosen else f"`{settings}` {score}"


def judges_answers(measure: str) -> bool:
    """Say whether a measure of held-out records is a checker's verdict: it is 0 or 1 each."""
    return measure.startswith("correct")


def values_by_family(records: Sequence[Record], measure: str) -> FamilyValues:
    """Return a measure of held-out records by source and question.

    Rows of one document, or with one reference each of the same question, give their mean. Records
    without a value are left out.
    """
    values: dict[tuple[str, tuple[str, str]], list[float]] = {}  # by family and question
    names: dict[tuple[str, tuple[str, str]], Question] = {}
    for record in records:
        question = question_id(record)
        key = (str(record.get("source") or "all"), question)
        names.setdefault(key, (question[0], question_hash(record)))
        if record.get(measure) is not None:
            values.setdefault(key, []).append(float(record[measure]))
    families: FamilyValues = {}
    for key, each in values.items():
        families.setdefault(key[0], {})[names[key]] = fmean(each)
    return families


def question_hash(record: Record) -> str:
    """Return what tells a held-out record's question and reference from others: eight hex digits.

    A record without the texts may have this hash as its `question` (`benchmarks.keep_study`).
    """
    if "reference" not in record:
        return str(record.get("question"))
    text = f"{record.get('question')}\n{record['reference']}"
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def _question(record: Record) -> Question:
    return str(record["id"]), question_hash(record)


def _check_same_questions(records: Mapping[str, Mapping[int, Sequence[Record]]], name: str) -> None:
    """Raise InputError unless each variant has the baseline's questions, seed by seed.

    `name` is the baseline's.
    """
    baseline = records.get(name, {})
    expected = {seed: set(map(_question, rows)) for seed, rows in baseline.items()}
    for variant, by_seed in records.items():
        for seed in by_seed.keys() & expected.keys():
            if set(map(_question, by_seed[seed])) != expected[seed]:
                raise InputError(
                    f"{variant}, seed {seed}, has different questions than the baseline's run "
                    f"({name}); they cannot be paired: give them the same data.valid"
                )


def _different_starts(
    runs: Mapping[str, Mapping[int, Path]],
) -> dict[int, dict[str, float]]:
    """Return `Comparison.different_starts`. Runs without a null trace (sft) are left out."""
    starts: dict[int, dict[str, float]] = defaultdict(dict)
    for variant, paths in runs.items():
        for seed, path in paths.items():
            first = next(iter(Run(path).metrics()), {})
            start = first.get("heldout/logp_null")  # None also if it was not finite
            if first.get("step") == 0 and start is not None:
                starts[seed][variant] = start
    return {
        seed: values
        for seed, values in sorted(starts.items())
        if max(values.values()) - min(values.values()) > SAME_START
    }


def _starts_text(starts: Mapping[int, Mapping[str, float]]) -> str:
    if not starts:
        return ""
    text = (
        "\n**Runs of a seed started from different models, prompts or markers**, so more than the "
        "variant differs between them. Log-probability of the reference answer after the null "
        "trace, before training, nats/token:\n\n"
    )
    for seed, values in starts.items():
        cells = ", ".join(f"`{_escape(name)}` {value:.3f}" for name, value in values.items())
        text += f"- seed {seed}: {cells}\n"
    return text + (
        "\nnrt makes a different base model on another processor: run all variants of a seed on "
        "one machine.\n"
    )


def _row(
    variant: str,
    name: str,
    families: Sequence[str],
    values_by_seed: Mapping[int, FamilyValues],
    baseline_by_seed: Mapping[int, FamilyValues],
    measure: str,
) -> ComparisonRow:
    """Return the row of one family, or of the mean of several."""
    by_seed: dict[int, list[dict[Question, float]]] = {}
    for seed, by_family in values_by_seed.items():
        if set(families) <= set(by_family):
            by_seed[seed] = [by_family[family] for family in families]
    differences = []
    for seed, family_values in by_seed.items():
        baseline = baseline_by_seed.get(seed, {})
        if set(families) <= set(baseline):
            pairs = zip(family_values, families, strict=True)
            differences.append([_paired(values, baseline[family]) for values, family in pairs])
    is_verdict = judges_answers(measure)
    return ComparisonRow(
        variant=variant,
        family=name,
        runs=len(values_by_seed),
        questions=max((sum(map(len, values)) for values in by_seed.values()), default=0),
        interval=_interval(list(by_seed.values()), SHARE if is_verdict else None),
        by_seed={
            seed: fmean(fmean(values.values()) for values in family_values)
            for seed, family_values in by_seed.items()
        },
        difference=_interval(differences, DIFFERENCE if is_verdict else None),
    )


def _paired(
    values: Mapping[Question, float], baseline: Mapping[Question, float]
) -> dict[Question, float]:
    """Return values − baseline of the questions for which both have a value."""
    return {key: value - baseline[key] for key, value in values.items() if key in baseline}


def _interval(
    by_seed: Sequence[Sequence[Mapping[Question, float]]], bounds: tuple[float, float] | None
) -> Interval | None:
    """Return the mean over seeds, families and questions, or None without values."""
    if not by_seed or not all(values for families in by_seed for values in families):
        return None
    questions = [[sorted(values) for values in families] for families in by_seed]
    ordered = [
        [[values[name] for name in names] for values, names in zip(*pair, strict=True)]
        for pair in zip(by_seed, questions, strict=True)
    ]
    return mean_interval(ordered, questions=questions, bounds=bounds)


def _seed_values(row: ComparisonRow, seeds: Sequence[int]) -> str:
    return " ".join(f"{row.by_seed[seed]:.2f}" if seed in row.by_seed else "–" for seed in seeds)


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
