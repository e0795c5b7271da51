"""Rows and credits survive the way into verl's batch and back."""

import pytest
import torch

from nrt.objective import RowCredit
from nrt.types import Role, Row

pytestmark = pytest.mark.verl


def test_every_field_of_a_credit_comes_back():
    from nrt.backends.verl.batch import rows_and_credits, update_batch

    roles = (Role.START, Role.TRACE, Role.END, Role.ANSWER)
    rows = [
        Row((3, 4), (1, 7, 2, 9), roles, end_sampled=True),
        Row((5,), (1, 2, 9), (Role.START, Role.END, Role.ANSWER), end_sampled=False),
    ]
    credits = [
        RowCredit(1.5, torch.tensor([-0.5]), torch.rand(4), 0.25, torch.rand(4), False, 1.75),
        RowCredit(-1.0, torch.tensor([-2.0]), torch.rand(3), 0.0, torch.rand(3), True),
    ]
    got_rows, got_credits = rows_and_credits(update_batch(rows, credits))
    for row, got_row in zip(rows, got_rows, strict=True):
        assert (got_row.tail_ids, got_row.tail_roles) == (row.tail_ids, row.tail_roles)
        assert got_row.end_sampled == row.end_sampled
    for credit, got in zip(credits, got_credits, strict=True):
        assert (got.advantage, got.reward) == (credit.advantage, credit.reward)
        assert got.beats_null is credit.beats_null
        assert got.posterior == credit.posterior
        for name in ("weights_T", "old_logp_N", "sampler_logp_N"):
            torch.testing.assert_close(getattr(got, name), getattr(credit, name), check_dtype=False)
