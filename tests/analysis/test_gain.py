"""The gain of a trace on held-out text (benchmarks/gain.py), worked by hand."""

import pytest

from benchmarks.gain import gain, gains


def record(name, logp, null, swapped=None, source="a"):
    return {"id": name, "source": source, "logp": logp, "logp_null": null, "logp_swapped": swapped}


def test_each_document_counts_once():
    """d:1 gains .4 and .6, mean .5; d:2 gains .1: the mean is .3, not 1.1 / 3."""
    result = gain([record("d:1@4", -1, -1.4), record("d:1@9", -1, -1.6), record("d:2@4", -2, -2.1)])
    interval = result.against["against the null trace"]
    assert interval
    assert interval.mean == pytest.approx(0.3)
    assert interval.high == pytest.approx(0.3 + 12.706 * 0.2)  # Student's t: .2 = √.08 / √2
    assert (result.documents, result.logp.mean) == (2, pytest.approx(-1.5))
    assert result.against["against another's trace"] is None


def test_by_source():
    records = [record("d:1@4", -1, -2, -3, source="a"), record("d:2@4", -1, -4, -1, source="b")]
    means = {
        source: [interval.mean for interval in result.against.values() if interval]
        for source, result in gains(records).items()
    }
    assert means == {"a": [1, 2], "b": [3, 0], "all": [2, 1]}
    assert list(gains(records[:1])) == ["a"]
