"""Answers end with a token that ends the turn, and not with END, which ends traces alone."""

from typing import Any

from nrt.data import Markers
from nrt.rollout import Generator

END, END_OF_TURN = 2, 3


def test_an_answer_does_not_end_with_the_traces_end():
    """END may be the last token under the cap; it is part of the answer then."""
    no_sampler: Any = None
    generator = Generator(no_sampler, Markers(1, END), frozenset({END, END_OF_TURN}), 8, 8)
    assert generator.answer_request([(7,)], seed=0).stop_ids == {END_OF_TURN}
    assert generator.strip_end_token((7, 8, END_OF_TURN)) == (7, 8)
    assert generator.strip_end_token((7, 8, END)) == (7, 8, END)
    assert generator.strip_end_token(()) == ()
