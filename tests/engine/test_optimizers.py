"""Learning rates of the updates, computed by hand."""

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.engine.optimizer import make_optimizer, make_schedule


def rates(updates: int, **settings) -> list[float]:
    """Return the learning rate of each update."""
    config = OptimizerConfig(lr=1.0, **settings)
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    scheduler = make_schedule(config, optimizer, updates)
    learning_rates = []
    for _ in range(updates):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return learning_rates


def test_warmup_does_not_start_at_zero():
    assert rates(7, warmup=5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert rates(3, warmup=1) == [1.0, 1.0, 1.0]
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warmup_as_a_share_of_all_updates():
    assert rates(10, warmup=0.2) == pytest.approx([0.5, *[1.0] * 9])


def test_linear_and_cosine_fall_after_warmup():
    """Two updates of warm-up, then four of the schedule.

    Linear: 4/4, 3/4, 2/4, 1/4. Cosine: (1 + cos πx)/2 at x = 0, .25, .5, .75.
    """
    linear = rates(6, warmup=2, schedule="linear")
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    cosine = rates(6, warmup=2, schedule="cosine")
    assert cosine == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], rel=1e-5)
