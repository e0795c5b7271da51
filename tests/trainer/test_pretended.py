"""A run on a GPU that is not there (tests/pretended.py): nothing is made on the wrong device, and the numbers are the CPU's."""

import copy

import pytest
import torch
from torch import nn

from nrt.eval.confidence import measure_confidence
from nrt.eval.reasoner import find_model, open_reasoner
from nrt.trainer import train
from tests.pretended import GPU, pretended_gpu
from tests.trainer.test_train import timeless, weights


def test_the_pretended_gpu_itself():
    with pretended_gpu():
        x = torch.arange(6.0, device=GPU).view(2, 3)
        assert x.device == GPU
        assert (x[[1]] + x.new_ones(3)).cpu().tolist() == [[4, 5, 6]]
        assert type((2 * x).cpu()) is torch.Tensor
        tied = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Embedding(4, 3))
        tied[1].weight = tied[0].weight
        tied = copy.deepcopy(tied.to(GPU))
        assert tied[0].weight is tied[1].weight
        (tied[:1](x).sum() * 2).backward()
        assert isinstance(tied[0].weight.grad, torch.Tensor)
        assert tied[0].weight.grad.tolist() == [[6.0, 10.0, 14.0]] * 4
        x[:, 1:3].zero_()
        assert x.tolist() == [[0, 0, 0], [3, 0, 0]]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x.masked_fill(torch.ones(3, dtype=torch.bool), 0),
        lambda x: x.index_put((torch.tensor([0]),), torch.ones(1)),
        lambda x: nn.Linear(3, 3)(x),
        lambda x: x.numpy(),
    ],
)
def test_what_a_gpu_refuses_is_refused(mixed):
    with pretended_gpu():
        x = torch.zeros(3, device=GPU)
        with pytest.raises((RuntimeError, TypeError)):
            mixed(x)


SMALL = {"steps": 2, "batch": 2, "traces": 2, "max_trace_tokens": 4, "heldout.rows": 2}
"""An operation takes ten times as long as without the pretence."""
SETTINGS = {
    "plain": {},
    "two updates": {"updates_per_rollout": 2},
    "initial": {"initial_reference": True, "objective.base_policy": "initial"},
    "recomputed": {"gradient_checkpointing": True},
    "sft": {"method": "sft"},
    "checked": {"method": "rlvr", "heldout.checker": "exact"},
    "learned": {"method": "nrt-learned"},
    "difficulty": {"data.difficulty.pool": 2},
    "original": {"method": "rlpr-original"},
    "adapters": {"lora.rank": 4},
}
"""Each of these goes other ways through sampling, scoring or the update."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_that_of_the_cpu(make_config, tmp_path, name):
    there = train(make_config(run=tmp_path / "cpu", device="cpu", **SMALL, **SETTINGS[name]))
    with pretended_gpu():
        here = train(make_config(run=tmp_path / "gpu", device="cuda:0", **SMALL, **SETTINGS[name]))
    assert_alike(here, there)


def test_a_resumed_run_too(make_config, tmp_path):
    longer = {**SMALL, "steps": 4}
    there = train(make_config(run=tmp_path / "cpu", device="cpu", **longer))
    with pretended_gpu():
        train(make_config(run=tmp_path / "gpu", device="cuda:0", **SMALL))
        here = train(make_config(resume=str(tmp_path / "gpu"), device="cuda:0", **longer))
    assert_alike(here, there)


def test_a_model_is_asked(make_config, tmp_path):
    """In bfloat16, as on any GPU: so the numbers are near, and what is sampled may be other tokens."""
    source = find_model(str(train(make_config(run=tmp_path / "run", device="cpu", steps=1)).path))
    with pretended_gpu():
        reasoners = [
            open_reasoner(source, device=device, max_trace_tokens=6, max_answer_tokens=6)
            for device in ("cpu", "cuda:0")
        ]
        there, here = (
            measure_confidence(reasoner, "what is one plus two ?", "so we get one", samples=2)
            for reasoner in reasoners
        )
    assert here.without
    assert there.without
    assert here.without.text == pytest.approx(there.without.text, abs=0.1)


def test_in_short_numbers_it_begins_alike(make_config, tmp_path):
    """Kernels round bfloat16 otherwise, so later tokens may be others."""
    there = train(make_config(run=tmp_path / "cpu", device="cpu", dtype="bfloat16", **SMALL))
    with pretended_gpu():
        here = train(make_config(run=tmp_path / "gpu", device="cuda:0", dtype="bfloat16", **SMALL))
    assert here.metrics()[0]["heldout/logp_null"] == pytest.approx(
        there.metrics()[0]["heldout/logp_null"], abs=0.05
    )


def assert_alike(here, there):
    """But for rounding, which Adam makes much of where a gradient is near zero."""
    assert sampled(here) == sampled(there)
    for ours, theirs in zip(timeless(here.metrics()), timeless(there.metrics()), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)
    for name, weight in weights(here).items():
        torch.testing.assert_close(weight, weights(there)[name], rtol=1e-2, atol=1e-3)


def sampled(run):
    return [trace["ids"] for group in run.traces() for trace in group.get("traces", ())]
