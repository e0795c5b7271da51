"""On a GPU: FlexAttention with a block mask, and rollouts from shared prompts, against the padded oracle. `pytest -m gpu`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from nrt.config import OptimizerConfig
from nrt.engine.build import build_engine
from nrt.engine.weights import layers_of, recomputing
from nrt.rollout import HFSampler, Request
from nrt.rollout.float32_head import _matmul
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer
from tests.scoring.test_packed import GROUPS, gradients, grouped
from tests.tiny import PAD, row, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # as an error it would end a compilation
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


def test_compiled_layers_and_recomputation_by_need_keep_the_gradient() -> None:
    """The defaults of a run. One micro-batch is recomputed, the other is not."""
    rows = grouped(1, GROUPS)
    found = []
    for setting in (False, "auto"):
        model = tiny_model("llama", **SIZES).cuda()
        engine = build_engine(
            model,
            OptimizerConfig(),
            pad_id=PAD,
            updates=1,
            tokens_per_batch=4096,
            gradient_checkpointing=setting,
            compile_layers=setting,
        )
        assert engine.compiled.is_on == bool(setting), engine.compiled.fault
        for tokens in (1, 10**9) if setting else (1,):
            if setting:
                assert engine.recompute_by_need is not None
                assert engine.recompute_by_need(tokens) == (tokens > 1)
            with (
                engine.compiled.layers_of(model),
                recomputing(layers_of(model) if tokens > 1 else ()),
            ):
                scores = engine.scorer(model, rows)
                found.append(gradients(model, scores.logp_N.sum()))
    for other in found[1:]:
        for name, gradient in found[0].items():
            gradient = gradient.to_dense()  # that of the embeddings is sparse
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                other[name].to_dense(), gradient, atol=1e-4 * scale, rtol=0, msg=name
            )


def test_float32_logits_of_a_bfloat16_head() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.testing.assert_close(_matmul(a, b), a.float() @ b.float(), atol=1e-4, rtol=1e-4)
