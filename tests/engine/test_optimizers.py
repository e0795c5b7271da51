"""Learning rates of the updates, by hand."""

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.engine.optimizers import make_optimizer, make_schedule


def rates(updates: int, **settings) -> list[float]:
    """Learning rate of each update."""
    config = OptimizerConfig(lr=1.0, **settings)
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    scheduler = make_schedule(config, optimizer, updates)
    seen = []
    for _ in range(updates):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_starts_at_a_share_of_the_rate_not_at_zero():
    assert rates(7, warmup=5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert rates(3, warmup=1) == [1.0, 1.0, 1.0]
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warm_up_as_a_share_of_all_updates():
    assert rates(10, warmup=0.2) == pytest.approx([0.5, *[1.0] * 9])


def test_linear_and_cosine_fall_after_the_warm_up():
    """Linear over 4 updates after 2 of warm-up: 4/4, 3/4, 2/4, 1/4. Cosine at the same places: (1 + cos πx)/2, x = 0, .25, .5, .75."""
    assert rates(6, warmup=2, schedule="linear") == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert rates(6, warmup=2, schedule="cosine") == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], rel=1e-5)
