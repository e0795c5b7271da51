"""On a GPU: FlexAttention with a block mask, and rollouts from shared prompts, against the padded oracle. `pytest -m gpu`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.engine.build import build_engine
from nrt.rollout import HFSampler, Request
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer
from tests.scoring.test_packed import GROUPS, gradients, grouped
from tests.tiny import PAD, row, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 16,
}  # FlexAttention wants heads of 16 at least
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_equal_the_oracles(architecture: str) -> None:
    rows = grouped(1, GROUPS)
    model, oracle = (tiny_model(architecture, **SIZES).cuda() for _ in range(2))
    assert isinstance(choose_scorer(model, PAD).scorer, PackedScorer), choose_scorer(model, PAD).why
    found, expected = PackedScorer()(model, rows), PaddedScorer(PAD)(oracle, rows)
    torch.testing.assert_close(found.logp_N, expected.logp_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy_N, expected.entropy_N, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, len(found.logp_N), device="cuda")
    ours, oracles = (
        gradients(model, found.logp_N @ weights),
        gradients(oracle, expected.logp_N @ weights),
    )
    largest = max(g.abs().max().item() for g in oracles.values())
    for name, gradient in oracles.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * largest, rtol=0, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_of_samples_are_the_scorers(architecture: str) -> None:
    model = tiny_model(architecture, **SIZES).cuda()
    prompts = [r.prompt_ids for r in grouped(0, [(4, [1]), (1, [1]), (9, [1])])]
    choose_scorer(model, PAD)
    samples = HFSampler(model, PAD).sample(
        Request(prompts, n=3, stop_ids=frozenset({2, 5}), cap=40, seed=1)
    )
    rows = [
        row(prompt, sample.ids)
        for prompt, group in zip(prompts, samples, strict=True)
        for sample in group
    ]
    sampled = torch.tensor(
        list(chain.from_iterable(sample.logps for group in samples for sample in group))
    )
    torch.testing.assert_close(
        sampled, PaddedScorer(PAD)(model, rows).logp_N.detach().cpu(), atol=1e-4, rtol=0
    )


def test_bfloat16_with_masters_and_recomputed_activations() -> None:
    model = tiny_model("llama", **SIZES).bfloat16().cuda()
    engine = build_engine(
        model,
        OptimizerConfig(),
        pad_id=PAD,
        updates=1,
        tokens_per_batch=1000,
        gradient_checkpointing=True,
    )
    assert isinstance(engine.scorer, PackedScorer)
    engine.scorer(model, grouped(2, GROUPS)).logp_N.sum().backward()
    assert all(
        master.grad is not None and master.grad.dtype == torch.float32
        for master in engine.weights.masters.values()
    )
