"""Scores of benchmarks, worked by hand."""

import math

import pytest

from nrt.analysis.benchmarks import (
    benchmark_scores,
    difference_table,
    mean_score,
    paired_difference,
    score_table,
    thinking_table,
)
from nrt.errors import InputError


def record(
    score,
    *,
    row=0,
    stratum="a",
    seed=0,
    benchmark="bbh",
    task="t",
    trace_tokens=10,
    finished=True,
    cut=False,
):
    said = {
        "trace": "z",
        "trace_tokens": trace_tokens,
        "finished": finished,
        "answer": "",
        "answer_tokens": 3,
        "cut": cut,
        "logps": [],
    }
    also = {"em": score / 2}
    return {
        "benchmark": benchmark, "task": task, "id": row, "stratum": stratum, "seed": seed,
        "score": score, "also": also, "said": [said], "seconds": 1.5,
    }  # fmt: skip


def test_strata_have_equal_weight_whatever_their_size():
    """Stratum a: 1, 0, 0, 1 → .5; b: 1 → 1. Not .6, the mean of the five."""
    rows = [record(x, row=i) for i, x in enumerate([1, 0, 0, 1])] + [record(1, row=9, stratum="b")]
    (score,) = benchmark_scores(rows)
    assert score.score == 0.75
    assert score.rows == 5
    # s² of a is 1/3, over 4 rows 1/12; b has one row and takes the variance of all five, .3
    assert score.stderr == pytest.approx(math.sqrt(1 / 12 + 0.3) / 2)
    assert score.also == {"em": pytest.approx(0.3)}
    assert score.seconds == 7.5


def test_a_row_with_two_seeds_counts_once():
    (score,) = benchmark_scores(
        [
            record(1, row=0, seed=0),
            record(0, row=0, seed=1),
            record(1, row=1, seed=0),
            record(1, row=1, seed=1),
        ]
    )
    assert (score.score, score.rows, score.seeds) == (0.75, 2, (1.0, 0.5))
    assert score.stderr == pytest.approx(math.sqrt(0.125 / 2))  # of .5 and 1


def test_lengths_and_unfinished():
    rows = [
        record(1, row=0, trace_tokens=10),
        record(0, row=1, trace_tokens=30, finished=False, cut=True),
    ]
    (score,) = benchmark_scores(rows)
    assert (score.trace_tokens, score.unfinished, score.cut, score.answer_tokens) == (
        20,
        0.5,
        0.5,
        3,
    )
    rows[0]["said"][0]["trace"] = rows[1]["said"][0]["trace"] = None
    assert benchmark_scores(rows)[0].trace_tokens is None
    assert "| BBH | 50.0 ± 50.0 | 2 | 1 | – | – | 3 |" in thinking_table(
        benchmark_scores(rows), {"bbh": "BBH"}
    )


def test_one_row_has_no_error():
    (score,) = benchmark_scores([record(1)])
    assert score.stderr is None
    mean = mean_score([score], ["bbh"])
    assert mean is not None
    assert mean.stderr is None
    assert "100.0 |" in score_table({"m": [score]}, {}, ["bbh"])


def test_mean_of_benchmarks():
    a, b = benchmark_scores(
        [
            record(x, row=i, benchmark=name)
            for name in ("a", "b")
            for i, x in enumerate([1, 0, 0, 0])
        ]
    )
    mean = mean_score([a, b], ["a", "b"])
    assert mean is not None
    assert mean_score([a], ["a", "b"]) is None
    assert mean.score == 0.25
    assert mean.stderr == pytest.approx(
        0.25 / math.sqrt(2)
    )  # each: s² .25 over 4 rows, its root .25


def test_paired_difference_is_over_common_rows_only():
    ours = [record(x, row=i) for i, x in enumerate([1, 1, 1, 0])]
    theirs = [record(x, row=i) for i, x in enumerate([0, 1, 0, 0])] + [record(1, row=77)]
    interval = paired_difference(ours, theirs, "bbh")
    assert interval.mean == 0.5
    # Differences 1 0 1 0: 3.182 · √(1/3) / √4 is above .5, and no difference exceeds 1.
    assert (interval.low, interval.high) == (pytest.approx(0.5 - 3.182 / math.sqrt(12)), 1)
    same = paired_difference(ours, ours, "bbh")
    assert (same.mean, same.low, same.high) == pytest.approx((0, -0.4899, 0.4899), abs=1e-4)
    with pytest.raises(InputError, match="no common row"):
        paired_difference(ours, [record(1, row=99)], "bbh")
    assert "| bbh | +50.0 [" in difference_table({"theirs": theirs, "ours": ours}, {})


def test_the_table_shows_a_mean_only_for_a_complete_suite():
    a, b = benchmark_scores(
        [
            record(x, row=i, benchmark=name)
            for name in ("a", "b")
            for i, x in enumerate([1, 0, 0, 0])
        ]
    )
    assert score_table({"m": [a, b]}, {"a": "A"}, ["a", "b"]).splitlines() == [
        "|  | `m` |", "| --- | --- |",
        "| A | 25.0 ± 25.0 |", "| b | 25.0 ± 25.0 |", "| mean of 2 | 25.0 ± 17.7 |",
    ]  # fmt: skip
    assert "mean" not in score_table({"m": [a, b]}, {}, ["a", "c"])
    assert (
        score_table({"m": [a, b], "n": [a]}, {}, ["a", "b"]).splitlines()[-1]
        == "| mean of 2 | 25.0 ± 17.7 | – |"
    )


def test_a_metric_with_several_values_per_row():
    """IFEval: two instructions in the first prompt, one in the second.

    The mean is 2 of 3 instructions, not the mean of .5 and 1.
    """
    rows = [
        record(1, row=0) | {"also": {"inst": [True, False]}},
        record(1, row=1) | {"also": {"inst": [True]}},
    ]
    assert benchmark_scores(rows)[0].also == {"inst": pytest.approx(2 / 3)}
