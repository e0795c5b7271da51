"""Comparison of run folders that the tests write, with numbers worked by hand."""

import json
from typing import Any

import pytest

from nrt.analysis.comparison import (
    compare,
    comparison_json,
    comparison_markdown,
    values_by_family,
)
from nrt.analysis.confidence import confidence_by_entropy
from nrt.analysis.plots import DYNAMICS, dynamics_labels
from nrt.config import Config
from nrt.errors import InputError
from nrt.run import RunWriter


@pytest.fixture
def write_run(tmp_path):
    """write_run(name, {"sum": [1, 0], "bot": [1]}) → run folder with one evaluation.

    The lists hold the verdicts of each family. `start` is the log-probability of the answer after
    the null trace before training.
    """

    def write(name, verdicts, start=None):
        with RunWriter.create(tmp_path / name, Config()) as writer:
            if start is not None:
                writer.metrics({"step": 0, "heldout/logp_null": start})
            rows = [
                (family, i, value)
                for family, values in verdicts.items()
                for i, value in enumerate(values)
            ]
            writer.heldout(
                3,
                [
                    {"id": f"{family}:{i}", "source": family, "correct": bool(v), "logp": -v}
                    for family, i, v in rows
                ],
            )
        return tmp_path / name

    return write


def row(comparison, variant, family) -> Any:
    return next(row for row in comparison.rows if (row.variant, row.family) == (variant, family))


def test_means_and_paired_differences_by_hand(write_run):
    runs = {
        "sft": {
            0: write_run("a", {"sum": [0, 0, 1, 0], "bot": [1, 1]}),
            1: write_run("b", {"sum": [0, 0, 0, 0], "bot": [1, 0]}),
        },
        "nrt": {
            0: write_run("c", {"sum": [1, 0, 1, 0], "bot": [1, 1]}),
            1: write_run("d", {"sum": [1, 1, 1, 1], "bot": [1, 1]}),
        },
    }
    comparison = compare(runs, "sft")
    assert row(comparison, "sft", "sum").by_seed == {0: 0.25, 1: 0.0}
    assert row(comparison, "nrt", "sum").interval.mean == pytest.approx((0.5 + 1.0) / 2)
    assert row(comparison, "nrt", "sum").difference.mean == pytest.approx((0.25 + 1.0) / 2)
    assert row(comparison, "sft", "sum").difference.mean == 0.0
    # Families have equal weight in the mean: seed 0 (.5 + 1)/2, seed 1 (1 + 1)/2.
    assert row(comparison, "nrt", "mean").by_seed == pytest.approx({0: 0.75, 1: 1.0})
    assert row(comparison, "nrt", "mean").interval.high <= 1.0
    # Seed 0 (.25 + 0)/2, seed 1 (1 + .5)/2.
    assert row(comparison, "nrt", "mean").difference.mean == pytest.approx((0.125 + 0.75) / 2)
    assert json.loads(comparison_json(comparison))["baseline"] == "sft"
    text = comparison_markdown(comparison)
    assert "| `nrt` | 0.750 [" in text  # the means' table, whose first column is sum
    assert "| `nrt` | 0.50 1.00 | 1.00 1.00 | 0.75 1.00 |" in text
    assert "| `nrt` | +0.625 [" in text
    assert text.count("`sft` |") == 2  # it is not compared with itself


def test_a_failed_run_is_listed_and_not_counted(write_run):
    runs = {"sft": {0: write_run("a", {"": [1, 0]})}, "nrt": {}}
    comparison = compare(runs, "sft", missing={"nrt, seed 0": "error: no room"})
    assert row(comparison, "nrt", "all").interval is None
    assert "no run" in comparison_markdown(comparison)
    assert "- `nrt, seed 0`: error: no room" in comparison_markdown(comparison)


def test_seeds_without_a_counterpart_are_not_paired(write_run):
    runs = {
        "sft": {0: write_run("a", {"s": [0, 0]})},
        "nrt": {0: write_run("b", {"s": [1, 1]}), 1: write_run("c", {"s": [0, 0]})},
    }
    comparison = compare(runs, "sft")
    assert row(comparison, "nrt", "s").difference.mean == 1.0
    assert row(comparison, "nrt", "s").interval.mean == 0.5


def test_different_questions_cannot_be_paired(write_run):
    runs = {"sft": {0: write_run("a", {"s": [0, 0]})}, "nrt": {0: write_run("b", {"s": [1, 1, 1]})}}
    with pytest.raises(InputError, match="different questions"):
        compare(runs, "sft")


def test_runs_of_a_seed_from_different_models_are_named(write_run):
    """As when variants of one seed are run on two machines, each with its own base model."""
    verdicts = {"s": [1, 0]}
    runs = {
        "nrt": {
            0: write_run("a", verdicts, start=-0.3231),
            1: write_run("b", verdicts, start=-0.3404),
        },
        "rlpr": {
            0: write_run("c", verdicts, start=-0.5371),
            1: write_run("d", verdicts, start=-0.3401),
        },
        "sft": {0: write_run("e", verdicts)},
    }
    comparison = compare(runs, "nrt")
    assert comparison.different_starts == {0: {"nrt": -0.3231, "rlpr": -0.5371}}
    assert "- seed 0: `nrt` -0.323, `rlpr` -0.537\n" in comparison_markdown(comparison)
    runs["nrt"][0] = write_run("f", verdicts, start=float("nan"))
    assert "different models" not in comparison_markdown(compare(runs, "nrt"))


def test_questions_that_all_seeds_share_count_once(write_run):
    """Every seed has the same half right: the interval is that of one seed."""
    verdicts = {"s": [1, 0] * 10}
    runs = {"sft": {seed: write_run(f"run{seed}", verdicts) for seed in range(6)}}
    many = row(compare(runs, "sft"), "sft", "s").interval
    one = row(compare({"sft": {0: runs["sft"][0]}}, "sft"), "sft", "s").interval
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.2)


def test_a_missing_value_leaves_out_one_question(write_run, tmp_path):
    """A log-probability that is not a number is null in the file."""
    runs = {"sft": {0: write_run("a", {"s": [1, 2]})}, "nrt": {0: write_run("b", {"s": [2, 4]})}}
    (file,) = (tmp_path / "b" / "heldout").glob("*.jsonl")
    file.write_text(file.read_text().replace('"logp": -2', '"logp": null', 1))
    comparison = compare(runs, "sft", measure="logp")
    assert row(comparison, "nrt", "s").interval.mean == -4.0
    assert row(comparison, "nrt", "s").difference.mean == -4.0 - (-2.0)
    assert row(comparison, "nrt", "s").questions == 1


def test_a_measure_that_a_variant_lacks_is_no_missing_run(write_run):
    runs = {"sft": {0: write_run("a", {"s": [1]})}, "nrt": {1: write_run("b", {"s": [1]})}}
    (file,) = (runs["sft"][0] / "heldout").glob("*.jsonl")
    file.write_text(file.read_text().replace('"correct": true', '"correct": null'))
    text = comparison_markdown(compare(runs, "sft"))
    assert "| `sft` | not measured |" in text
    assert "No differences: no run of `sft` has correct." in text


def test_seeds_keep_their_places_and_names_their_cells(write_run):
    runs = {
        "sft": {0: write_run("a", {"s": [1]}), 2: write_run("b", {"s": [0]})},
        "lr|1e-5": {2: write_run("c", {"s": [1]})},
    }
    text = comparison_markdown(compare(runs, "sft"))
    assert "## Every seed: 0, 2" in text
    assert "| `sft` | 1.00 0.00 |" in text
    assert "| `lr\\|1e-5` | – 1.00 |" in text


def test_an_unknown_measure(write_run):
    with pytest.raises(InputError, match="no held-out record has 'corect'"):
        compare({"sft": {0: write_run("a", {"s": [0]})}}, "sft", measure="corect")


def test_confidence_by_hand():
    """Easy token: P .9 against .9. Hard tokens: .4 against .1, .2 against .2: .3 over .15 = 2."""
    import math

    def record(id, probabilities, entropies):
        return {
            "id": id,
            "token_logp": [math.log(p) for p in probabilities],
            "token_entropy": entropies,
        }

    ours = [[record("1", [0.9, 0.4], [9, 9]), record("2", [0.2], [9])]]
    base = [[record("2", [0.2], [2.0]), record("1", [0.9, 0.1], [0.1, 1.9])]]
    easy, hard = confidence_by_entropy(ours, base, bins=2)
    assert (easy.tokens, hard.tokens) == (1, 2)
    assert easy.ratio.mean == pytest.approx(1.0)
    assert hard.ratio.mean == pytest.approx(2.0)
    assert hard.ratio.low == pytest.approx(1.0)
    assert hard.ratio.high == pytest.approx(4.0)


def test_the_readout_has_panels_where_a_run_measured_it():
    assert dynamics_labels([{"trace/length": 3.0}]) == DYNAMICS
    labels = dynamics_labels([{"trace/length": 3.0}, {"readout/right": 0.1}])
    assert list(labels) == [*DYNAMICS, "readout/right"]


def test_rows_of_one_document_count_once():
    """Cuts of a text, and rows with one reference each: four rows, two documents."""
    rows = [
        {"id": name, "source": "a", "question": name, "reference": "r", "logp": value}
        for name, value in (("b.jsonl:1@64", 0.0), ("b.jsonl:1@128", 1.0), ("b.jsonl:2#1", 3.0))
    ]
    unread = {"id": "b.jsonl:2#2", "reference": "s", "logp": None}
    values = values_by_family([*rows, rows[-1] | unread], "logp")
    assert list(values["a"].values()) == [0.5, 3.0]
    # The question keeps its name although another of its references has the value.
    others = [*rows[:2], rows[-1] | {"logp": None}, rows[-1] | unread | {"logp": 2.0}]
    assert list(values_by_family(others, "logp")["a"]) == list(values["a"])


def test_rows_of_files_of_one_name_are_different_questions():
    """gsm8k/test.jsonl and mmlu/test.jsonl have rows with the same ids."""
    rows = [
        {"id": "test.jsonl:1", "question": q, "reference": "1", "logp": v}
        for q, v in (("a", 1), ("b", 3))
    ]
    assert sorted(values_by_family(rows, "logp")["all"].values()) == [1, 3]
    parts = [{**row, "id": f"test.jsonl:1@{i}"} for i, row in enumerate(rows)]
    assert list(values_by_family(parts, "logp")["all"].values()) == [2], "parts of one document"
    references = [{**row, "id": f"test.jsonl:1#{i}", "question": "a"} for i, row in enumerate(rows)]
    assert list(values_by_family(references, "logp")["all"].values()) == [2], "one question"
