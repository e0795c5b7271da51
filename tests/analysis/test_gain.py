"""Gains worked by hand."""

import pytest

from nrt.analysis.gain import gain, gains


def record(name, logp, null, swapped=None, source="a"):
    return {"id": name, "source": source, "logp": logp, "logp_null": null, "logp_swapped": swapped}


def test_each_document_counts_once():
    """d:1 gains .4 and .6, mean .5; d:2 gains .1: the mean is .3, not 1.1 / 3."""
    found = gain([record("d:1@4", -1, -1.4), record("d:1@9", -1, -1.6), record("d:2@4", -2, -2.1)])
    interval = found.against["against the null trace"]
    assert interval
    assert interval.mean == pytest.approx(0.3)
    assert 0.1 - 1e-9 <= interval.low < interval.high <= 0.5 + 1e-9
    assert (found.documents, found.logp.mean) == (2, pytest.approx(-1.5))
    assert found.against["against another's trace"] is None


def test_by_source():
    records = [record("d:1@4", -1, -2, -3, source="a"), record("d:2@4", -1, -4, -1, source="b")]
    found = gains(records)
    assert {name: [i.mean for i in one.against.values() if i] for name, one in found.items()} == {"a": [1, 2], "b": [3, 0], "all": [2, 1]}
    assert list(gains(records[:1])) == ["a"]
