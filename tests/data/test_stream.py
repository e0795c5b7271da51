from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.data import Stream
from nrt.errors import InputError


def test_unshuffled() -> None:
    assert Stream(3, seed=5, shuffle=False).indices(2, 6) == [2, 0, 1, 2, 0, 1]


@given(n=st.integers(1, 20), seed=st.integers(-(2**70), 2**70), shuffle=st.booleans())
def test_every_epoch_is_a_permutation(n: int, seed: int, shuffle: bool) -> None:
    order = Stream(n, seed, shuffle).indices(0, 4 * n)
    for epoch in range(4):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=st.integers(1, 20), position=st.integers(0, 60), count=st.integers(0, 50))
def test_any_span_is_a_slice_of_the_whole(n: int, position: int, count: int) -> None:
    whole = Stream(n, seed=3).indices(0, 110)
    assert Stream(n, seed=3).indices(position, count) == whole[position : position + count]


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(Stream(50, seed).indices(50 * epoch, 50)) for seed in range(-3, 3) for epoch in range(3)}
    assert len(orders) == 18


def test_golden_order() -> None:
    """Written down once: a resumed run, and a run of last year, must draw the same rows."""
    assert Stream(5, seed=3).indices(0, 15) == [4, 1, 0, 2, 3, 2, 0, 3, 1, 4, 2, 0, 1, 3, 4]


def test_nothing_to_draw_from() -> None:
    with pytest.raises(InputError, match="no row to draw from"):
        Stream(0, seed=0)
