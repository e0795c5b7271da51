"""Learning rates of the updates, computed by hand; the state of paged optimizers."""

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.distributed import SINGLE_PROCESS
from nrt.engine.optimizer import make_optimizer, make_schedule
from nrt.engine.state import collect_state, restore_state, write_state
from nrt.engine.weights import Weights


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


def test_state_that_can_be_paged_is_still_so_after_a_resume(tmp_path, monkeypatch):
    """On a CPU bitsandbytes has no pages, so the test marks the tensors that it would page."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.optim.adamw import PagedAdamW8bit

    def paged(self, p, dtype=torch.float32):
        tensor = torch.zeros_like(p, dtype=dtype)
        tensor.is_paged = True  # pyright: ignore[reportAttributeAccessIssue]
        return tensor

    monkeypatch.setattr(PagedAdamW8bit, "get_state_buffer", paged)
    monkeypatch.setattr("bitsandbytes.functional.prefetch_tensor", lambda *_: None)
    torch.manual_seed(0)
    layer = torch.nn.Linear(80, 80, bias=False)
    weights = Weights(layer)
    optimizer = PagedAdamW8bit(list(weights.masters.values()))
    (master,) = weights.masters.values()
    master.grad = torch.randn_like(master)
    optimizer.step()
    tensors, groups = collect_state(weights, optimizer, SINGLE_PROCESS)
    write_state(tmp_path, tensors)
    resumed = PagedAdamW8bit(list(weights.masters.values()))
    restore_state(tmp_path, weights, resumed, groups)
    expected, found = optimizer.state[master], resumed.state[master]
    assert found["step"] == 1
    assert found["state1"].dtype == torch.uint8
    for slot in ("state1", "state2"):
        assert found[slot].is_paged
        assert torch.equal(found[slot], expected[slot])
