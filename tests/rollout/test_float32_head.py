"""Logits of a bfloat16 model in float32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from nrt.models.attention import install_attention
from nrt.rollout import HFSampler, Request, hf
from nrt.rollout.float32_head import float32_logits
from nrt.scoring.packed import PackedScorer
from tests.tiny import PAD, random_rows, row, tiny_model


def loud_model(architecture: str = "llama"):
    """A model whose logits are as large as a pretrained model's, where bfloat16 is coarse."""
    model = tiny_model(architecture, initializer_range=0.1).bfloat16()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_the_heads_product_is_not_rounded(bias):
    model = loud_model()
    head = model.get_output_embeddings()
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(len(head.weight), dtype=torch.bfloat16))
    hidden = torch.randn(2, 3, head.in_features, dtype=torch.bfloat16)
    exact = torch.nn.functional.linear(
        hidden.float(), head.weight.float(), head.bias.float() if bias else None
    )
    rounded = head(hidden)
    with float32_logits(model):
        logits = head(hidden)
    assert (rounded.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    assert (rounded.float() - exact).abs().max() > 1e-2
    torch.testing.assert_close(logits, exact, atol=1e-3, rtol=0)
    assert torch.equal(head(hidden), rounded), "the context has ended"


def test_a_softcap_is_applied_in_float32():
    model = loud_model("gemma2")
    with float32_logits(model):
        assert model(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.float32


def test_a_float32_model_is_left_alone():
    model = tiny_model()
    head = model.get_output_embeddings()
    with float32_logits(model):
        assert "forward" not in vars(head)


def gap() -> float:
    """Mean difference of the log-probabilities of sampler and trainer, in nats.

    All logits have 20 in common, as those of pretrained models do. It changes no probability.
    """
    model = tiny_model(initializer_range=0.1).bfloat16()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((len(head.weight),), 20, dtype=torch.bfloat16))
    install_attention(model)
    prompts = [r.prompt_ids for r in random_rows(0, [(4, 1), (9, 1)])]
    request = Request(prompts, n=32, stop_ids=frozenset(), cap=20, seed=1)
    samples = HFSampler(model, PAD).sample(request)
    rows, logps = [], []
    for prompt, group in zip(prompts, samples, strict=True):
        for sample in group:
            rows.append(row(prompt, sample.ids))
            logps += sample.logps
    with torch.no_grad():
        scored = PackedScorer()(model, rows).logp_N
    return float((torch.tensor(logps) - scored).abs().mean())


def test_sampler_and_trainer_differ_less(monkeypatch):
    with_float32 = gap()
    monkeypatch.setattr(hf, "float32_logits", lambda model: nullcontext())
    assert with_float32 < 0.2 * gap()
