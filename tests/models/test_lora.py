"""Adapters and trained rows: what they train, what is merged, and that the initial model is still there beneath them."""

from __future__ import annotations

import pytest
import torch

from nrt.errors import InputError
from nrt.models import Adapters, add_adapters, has_adapters, initial, merged
from nrt.models.lora import trained
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer
from nrt.types import Role, Row
from tests.tiny import tiny_model

ARCHITECTURES = ["llama", "llama-tied-mha", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
START, END = 5, 6
ROWS = [
    Row((1, 2, START), (7, 8, END, 9, START), (Role.ANSWER,) * 5, False),
    Row((1, 2, START), (9, END, END), (Role.ANSWER,) * 3, False),
]
PADDED = PaddedScorer(0)


def adapted(architecture: str, *, moved: bool = True):
    """With adapters and rows that are no longer what they began as."""
    model = tiny_model(architecture)
    add_adapters(model, Adapters(4, 8.0), [START, END])
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trained(model):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(scorer, model):
    model.zero_grad()
    scorer(model, ROWS).logp_N.pow(2).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def logps(model):
    return PADDED(model, ROWS).logp_N


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_first_nothing_has_changed(architecture):
    assert torch.equal(logps(adapted(architecture, moved=False)), logps(tiny_model(architecture)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_and_padded_have_the_same_gradients(architecture):
    model = adapted(architecture)
    assert isinstance(choose_scorer(model, 0).scorer, PackedScorer)
    packed, padded = gradients(PackedScorer(), model), gradients(PADDED, model)
    assert set(packed) == set(padded) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name in packed:
        assert (packed[name] - padded[name]).abs().max() <= 1e-5 * padded[name].abs().max(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_have_the_gradient_that_the_whole_table_would_have(architecture):
    """Of input and output embeddings; where they are tied, the sum of both."""
    model, whole = adapted(architecture), tiny_model(architecture)
    whole.load_state_dict(dict(merged(model)), strict=False)
    assert torch.allclose(logps(whole), logps(model), atol=1e-5)
    found, expected = gradients(choose_scorer(model, 0).scorer, model), gradients(PADDED, whole)
    tables = {name for name in expected if expected[name].shape[0] == whole.config.vocab_size}
    assert len(tables) == (1 if whole.config.tie_word_embeddings else 2)
    for table in tables:
        scale = expected[table].abs().max()
        for token in (START, END):
            row = found[table.removesuffix("weight") + f"trained_row_{token}"]
            assert (row[0] - expected[table][token]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_initial_model_is_beneath(architecture):
    model = adapted(architecture)
    now = logps(model)
    with initial(model):
        assert torch.equal(logps(model), logps(tiny_model(architecture)))
    assert torch.equal(logps(model), now)
    assert {p.requires_grad for p in trained(model)} == {True}
    assert len(trained(model)) == len(trained(adapted(architecture)))


def test_only_the_named_layers_have_adapters():
    model = tiny_model("llama")
    add_adapters(model, Adapters(2, 4.0, ("q_proj", "v_proj")), [START])
    layers = {name.split(".")[4] for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    assert layers == {"q_proj", "v_proj"}
    assert has_adapters(model)
    assert not has_adapters(tiny_model("llama"))


def test_a_target_that_is_nowhere():
    with pytest.raises(InputError, match=r"lora\.targets: .*z_proj"):
        add_adapters(tiny_model("llama"), Adapters(2, 4.0, ("z_proj",)), [START])


def test_the_seed_decides_the_adapters_and_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b = adapted("llama", moved=False), adapted("llama", moved=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(trained(a), trained(b), strict=True))
