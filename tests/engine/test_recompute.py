"""Gradient checkpointing by need: the decision by hand, its count, and the same gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nrt.config import OptimizerConfig, load_config
from nrt.engine.build import build_engine
from nrt.engine.counting import count_update
from nrt.engine.recompute import (
    ActivationCost,
    RecomputeByNeed,
    activation_cost,
    model_on_meta,
    recompute_by_need,
    resolve_setting,
)
from nrt.models.attention import install_attention
from nrt.plan import PlanRequest, RowLengths, accelerator, make_plan
from nrt.scoring import PackedScorer
from nrt.scoring.packing import packed_tokens
from tests.engine.test_several import gradient_of_batch
from tests.tiny import PAD, random_rows, tiny_model

COST = ActivationCost(fixed=100, per_token=10)


@pytest.mark.parametrize(("left", "tokens"), [(1100, 100), (1109, 100), (1110, 101), (99, 0)])
def test_the_tokens_that_fit_by_hand(left, tokens):
    assert COST.tokens_that_fit(left) == tokens
    by_need = RecomputeByNeed(COST, lambda: left)
    assert not by_need(tokens)
    assert by_need(tokens + 1)


@pytest.mark.parametrize(
    ("setting", "device", "quantized", "meaning"),
    [
        ("auto", "cuda", False, "auto"),
        ("auto", "cuda", True, True),
        ("auto", "cpu", False, False),
        (True, "cpu", False, True),
        (False, "cuda", True, False),
    ],
)
def test_what_the_setting_means(setting, device, quantized, meaning):
    assert resolve_setting(setting, device, quantized=quantized) == meaning


def test_beside_a_sampler_in_another_thread_all_is_recomputed():
    assert resolve_setting("auto", "cuda", quantized=False, beside_sampler=True) is True
    assert resolve_setting("auto", "cpu", quantized=False, beside_sampler=True) is False


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_line_is_close_to_the_count_of_rows_and_not_below_it(architecture):
    """Rows of 5,000 tokens, of which the line counts prompts as predicted, too."""
    model = model_on_meta(tiny_model(architecture, max_position_embeddings=20_000))
    install_attention(model)
    cost = activation_cost(model, "cuda")
    for rows in (
        random_rows(0, [(1, 5001)]),
        random_rows(1, [(400, 600)] * 5),
        random_rows(2, [(4000, 6000)]),
    ):
        counted = count_update(model, tuple(rows), recompute=False).peak
        line = cost.fixed + cost.per_token * packed_tokens(rows)
        assert counted <= line <= 1.2 * counted


def test_weights_stay_where_they_are():
    model = tiny_model("llama-tied-mha")
    copied: Any = model_on_meta(model)
    assert {p.device.type for p in copied.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert recompute_by_need(copied, "cpu", lambda: 0) is not None


def test_a_model_that_cannot_be_counted():
    model: Any = model_on_meta(tiny_model("llama"))
    model.model.forward = lambda **_: torch.zeros((), device="meta").item()
    assert recompute_by_need(model, "cpu", lambda: 0) is None


def gradient(left: int | None, *, setting: bool = False, halved: bool = False):
    """Return the gradient of six rows, and how often the first layer ran for each.

    Rows are micro-batches of their own, of 8 to 13 packed tokens.

    Args:
        left: bytes for activations, of which COST takes 10 a token; None: as `setting` says.
    """
    model = tiny_model("llama")
    engine = build_engine(
        model,
        OptimizerConfig(),
        pad_id=PAD,
        updates=1,
        tokens_per_batch=1,
        gradient_checkpointing=setting,
    )
    assert isinstance(engine.scorer, PackedScorer)
    engine.budget.halved = halved
    if left is not None:
        engine.recompute_by_need = RecomputeByNeed(COST, lambda: left)
    runs: dict[int, int] = {}

    def count(module, inputs, output):
        runs[output.shape[1]] = runs.get(output.shape[1], 0) + 1

    model.model.layers[0].input_layernorm.register_forward_hook(count)
    gradient_of_batch(engine, prompts=2)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), runs


def test_micro_batches_that_fit_are_not_recomputed_and_the_gradient_is_the_same():
    expected, runs = gradient(None)
    assert runs == {8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1}
    some, runs = gradient(100 + 10 * 10, setting=True)
    assert runs == {8: 1, 9: 1, 10: 1, 11: 2, 12: 2, 13: 2}
    every, runs = gradient(0, setting=True)
    assert set(runs.values()) == {2}
    assert expected.abs().max() > 0
    assert torch.equal(some, expected)
    assert torch.equal(every, expected)


def test_after_memory_ran_out_all_are_recomputed():
    _, runs = gradient(10**9, setting=True, halved=True)
    assert set(runs.values()) == {2}


@pytest.mark.parametrize(
    ("model", "gpus", "tokens", "recompute"),
    [
        ("llama-3.2-3b", 1, 4096, False),
        ("llama-3.2-3b", 1, 8192, True),
        ("llama-3.1-8b", 8, 8192, False),
        ("llama-3.1-8b", 8, 16384, True),
    ],
)
def test_the_plan_recomputes_by_the_same_rule(model, gpus, tokens, recompute):
    """Prompts, traces and answers of 300, 500 and 416 tokens on H100."""
    gpu = accelerator("h100")
    config = load_config(model, tokens_per_batch=tokens)
    plan = make_plan(PlanRequest(config, gpu, gpus, lengths=RowLengths(300, 500, 416)))
    update = plan.memory.update
    assert plan.fits
    assert update.recompute == recompute
    assert update.recompute_above is not None
    assert (update.tokens > update.recompute_above) == recompute
    assert plan.memory.updating <= plan.usable
