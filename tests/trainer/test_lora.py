"""Runs with adapters: only they move, what is saved is merged, and an interruption leaves no mark. In 4 bits too."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import nrt
from nrt.errors import InputError, Interrupted
from nrt.models import has_adapters, load_model
from nrt.trainer.setup import prepare
from tests.steps import local_engine
from tests.trainer.test_train import InterruptAt, assert_same_run, weights

LORA = {"lora": {"rank": 4}, "optimizer": {"lr": 1e-2}}


@pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16"}, {"quantize": "nf4"}, {"optimizer": {"lr": 1e-2, "name": "adamw-8bit"}}],
                         ids=["float32", "bfloat16", "nf4", "8-bit state"])  # fmt: skip
def test_interrupted_and_resumed_it_is_the_same_run(make_config, tmp_path, more):
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **LORA | more))
    config = make_config(run=str(tmp_path / "cut"), **LORA | more)
    with pytest.raises(Interrupted):
        nrt.train(config, listener=InterruptAt(5))
    cut = nrt.train(
        make_config(run=str(tmp_path / "cut"), resume=str(tmp_path / "cut"), **LORA | more)
    )
    assert_same_run(whole, cut)
    assert [record["loss/total"] for record in whole.metrics()[1:]] != [0.0] * 3


def test_what_is_saved_is_merged_and_ordinary(make_config, tmp_path, model_dir):
    config = make_config(run=str(tmp_path / "run"), **LORA)
    run = nrt.train(config)
    saved, base = weights(run), AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    assert not any("lora" in name or "trained_row" in name for name in saved)
    model = AutoModelForCausalLM.from_pretrained(run.model_dir)
    assert not has_adapters(model)
    name = "model.layers.0.mlp.up_proj.weight"
    change = saved[name] - base[name]
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 4
    assert torch.equal(saved["model.norm.weight"], base["model.norm.weight"])
    old = base["model.embed_tokens.weight"].shape[0]
    assert torch.equal(
        saved["model.embed_tokens.weight"][:old], base["model.embed_tokens.weight"]
    )  # the markers' rows alone moved
    assert not torch.equal(
        saved["model.embed_tokens.weight"][old], base["model.embed_tokens.weight"][4]
    )  # from "\n"'s


def test_the_checkpoint_gives_the_engine_what_it_had(make_config, tmp_path):
    """Scores of the resumed parts equal those of the merged model that was saved beside them."""
    config = make_config(run=str(tmp_path / "run"), **LORA)
    run = nrt.train(config)
    parts = prepare(config, checkpoint=run.checkpoints()[-1])
    from nrt.trainer.checkpoint import load_checkpoint

    load_checkpoint(run.checkpoints()[-1], local_engine(parts))
    merged = dict(local_engine(parts).parameters())
    for name, tensor in weights(run).items():
        assert torch.allclose(merged[name], tensor, atol=1e-6), name


def test_a_base_in_4_bits_is_saved_in_full(make_config, tmp_path):
    run = nrt.train(make_config(run=str(tmp_path / "run"), quantize="nf4", **LORA))
    model = AutoModelForCausalLM.from_pretrained(run.model_dir)
    assert getattr(model.config, "quantization_config", None) is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "nf4"}, "lora.rank"),
        ({"lora": {"rank": 4}, "overlap": True}, "overlap=false"),
        ({"optimizer": {"name": "paged-adamw-8bit"}}, "adamw-8bit or adamw"),
    ],
)
def test_what_does_not_go_together(make_config, settings, message):
    with pytest.raises(InputError, match=message):
        nrt.train(make_config(**settings))


def test_quantised_weights_need_adapters(make_config, model_dir, tmp_path):
    """Their 4-bit layers get no gradient, and the rest would be trained without a word."""
    model, tokenizer = load_model(str(model_dir), dtype=torch.float32, device="cpu", quantize="nf4")
    model.save_pretrained(tmp_path / "bnb-4bit")
    tokenizer.save_pretrained(tmp_path / "bnb-4bit")
    with pytest.raises(
        nrt.InputError, match="quantised weights, which cannot be trained; set lora"
    ):
        nrt.train(make_config(model=str(tmp_path / "bnb-4bit")))
