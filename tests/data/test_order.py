from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.data import RowOrder
from nrt.errors import InputError


def test_unshuffled() -> None:
    assert RowOrder((3,), seed=5, shuffle=False).indices(2, 6) == [2, 0, 1, 2, 0, 1]


@given(n=st.integers(1, 20), seed=st.integers(-(2**70), 2**70), shuffle=st.booleans())
def test_every_epoch_is_a_permutation(n: int, seed: int, shuffle: bool) -> None:
    order = RowOrder((n,), seed, shuffle).indices(0, 4 * n)
    for epoch in range(4):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=st.integers(1, 20), position=st.integers(0, 60), count=st.integers(0, 50))
def test_any_span_is_a_slice_of_the_whole(n: int, position: int, count: int) -> None:
    order = RowOrder((n,), seed=3).indices(0, 110)
    assert RowOrder((n,), seed=3).indices(position, count) == order[position : position + count]


def test_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(RowOrder((50,), seed).indices(50 * epoch, 50))
        for seed in range(-3, 3)
        for epoch in range(3)
    }
    assert len(orders) == 18


def test_golden_order() -> None:
    """Written down once: a resumed run, and a run of last year, must draw the same rows."""
    assert RowOrder((5,), seed=3).indices(0, 15) == [4, 1, 0, 2, 3, 2, 0, 3, 1, 4, 2, 0, 1, 3, 4]


def test_nothing_to_draw_from() -> None:
    with pytest.raises(InputError, match="no row to draw from"):
        RowOrder((0,), seed=0)
    with pytest.raises(InputError, match="a source with a weight has no usable row"):
        RowOrder((3, 0), seed=0, weights=(1.0, 1.0))


# --- sources with weights ---


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_shares_are_exact_in_every_epoch_and_no_row_repeats_early(
    sizes, weights, seed, shuffle
) -> None:
    stream = RowOrder(tuple(sizes), seed, shuffle, weights=tuple(weights[: len(sizes)]))
    n, counts = sum(sizes), stream.counts()
    assert sum(counts) == n
    assert all(
        abs(count - n * w / sum(stream.weights)) < 1
        for count, w in zip(counts, stream.weights, strict=True)
    )
    order, first = stream.indices(0, 6 * n), 0
    for size, count in zip(sizes, counts, strict=True):
        epochs = [
            [i for i in order[e * n : (e + 1) * n] if first <= i < first + size] for e in range(6)
        ]
        assert [len(epoch) for epoch in epochs] == [count] * 6
        drawn = [order.count(i) for i in range(first, first + size)]
        assert max(drawn) - min(drawn) <= 1, "none is drawn twice before all are drawn once"
        first += size


def test_weights_by_hand() -> None:
    """2 and 6 rows at 3 : 1 → of 8 rows an epoch, 6 are the first source's: each of its two rows three times."""
    order = RowOrder((2, 6), seed=0, weights=(3.0, 1.0)).indices(0, 24)
    assert [sum(i < 2 for i in order[e * 8 : e * 8 + 8]) for e in range(3)] == [6, 6, 6]
    assert [order.count(i) for i in range(8)] == [9, 9, 1, 1, 1, 1, 1, 1]


def test_unshuffled_sources_are_interleaved() -> None:
    assert RowOrder((2, 6), seed=0, shuffle=False, weights=(1.0, 1.0)).indices(0, 8) == [
        0,
        2,
        1,
        3,
        0,
        4,
        1,
        5,
    ]


@given(position=st.integers(0, 60), count=st.integers(0, 50), weighted=st.booleans())
def test_any_span_of_a_mixture_is_a_slice_of_the_whole(
    position: int, count: int, weighted: bool
) -> None:
    def stream() -> RowOrder:
        lengths = np.arange(15)[::-1] % 7
        return RowOrder(
            (4, 11), seed=3, weights=(1.0, 2.0) if weighted else (), lengths=lengths, batch=4
        )

    assert (
        stream().indices(position, count) == stream().indices(0, 110)[position : position + count]
    )


# --- rows of like length ---


def test_batches_of_like_length() -> None:
    """1,000 rows with lengths 0 … 999 in batches of 10: within a window of 500 rows a batch spans ten of its sorted lengths."""
    lengths = np.random.default_rng(0).permutation(1000)
    order = RowOrder((1000,), seed=1, lengths=lengths, batch=10).indices(0, 1000)
    assert sorted(order) == list(range(1000))
    spans = [np.ptp(lengths[order[i : i + 10]]) for i in range(0, 1000, 10)]
    plain = RowOrder((1000,), seed=1).indices(0, 1000)
    assert np.mean(spans) < 30
    assert np.mean([np.ptp(lengths[plain[i : i + 10]]) for i in range(0, 1000, 10)]) > 700
    means = [lengths[order[i : i + 10]].mean() for i in range(0, 1000, 10)]
    assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.3, "short batches do not come first"


def test_steps_have_like_lengths_in_every_epoch() -> None:
    """1,003 rows in batches of 10: the second epoch begins within a step."""
    lengths = np.random.default_rng(0).permutation(1003)
    order = RowOrder((1003,), seed=1, lengths=lengths, batch=10).indices(0, 3 * 1003)
    for epoch in range(3):
        assert sorted(order[epoch * 1003 : (epoch + 1) * 1003]) == list(range(1003))
    spans = [np.ptp(lengths[order[i : i + 10]]) for i in range(0, 3000, 10)]
    for epoch in range(3):
        assert np.median(spans[epoch * 100 : epoch * 100 + 100]) < 30


def test_a_remainder_stays_at_the_end() -> None:
    order = RowOrder((11,), seed=1, lengths=np.arange(11), batch=4).indices(0, 11)
    assert sorted(order) == list(range(11))
