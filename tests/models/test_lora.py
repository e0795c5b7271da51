"""Adapters and trained rows: gradients, merging, and the initial model beneath them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

from nrt.errors import InputError
from nrt.models import AdapterConfig, add_adapters, has_adapters, initial_weights, merged_parameters
from nrt.models.lora import trainable_parameters
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
    """Return a model with adapters and trained rows, both changed unless `moved` is false."""
    model = tiny_model(architecture)
    add_adapters(model, AdapterConfig(4, 8.0), [START, END])
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trainable_parameters(model):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(scorer, model):
    model.zero_grad()
    scorer(model, ROWS).logp_N.pow(2).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@torch.no_grad()
def logps(model):
    return PADDED(model, ROWS).logp_N


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_adapters_change_nothing(architecture):
    assert torch.equal(logps(adapted(architecture, moved=False)), logps(tiny_model(architecture)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_and_padded_have_the_same_gradients(architecture):
    model = adapted(architecture)
    assert isinstance(choose_scorer(model, 0).scorer, PackedScorer)
    packed, padded = gradients(PackedScorer(), model), gradients(PADDED, model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(packed) == set(padded) == trainable
    for name in packed:
        difference = (packed[name] - padded[name]).abs().max()
        assert difference <= 1e-5 * padded[name].abs().max(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trained_rows_have_the_gradient_of_the_table(architecture):
    """The gradient of each row is that in a fully trained model; of tied embeddings, the sum."""
    model, full = adapted(architecture), tiny_model(architecture)
    full.load_state_dict(dict(merged_parameters(model)), strict=False)
    assert torch.allclose(logps(full), logps(model), atol=1e-5)
    row_gradients = gradients(choose_scorer(model, 0).scorer, model)
    expected = gradients(PADDED, full)
    tables = {name for name in expected if expected[name].shape[0] == full.config.vocab_size}
    assert len(tables) == (1 if full.config.tie_word_embeddings else 2)
    for table in tables:
        scale = expected[table].abs().max()
        for token in (START, END):
            row = row_gradients[table.removesuffix("weight") + f"trained_row_{token}"]
            assert (row[0] - expected[table][token]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_initial_model_can_be_restored(architecture):
    model = adapted(architecture)
    current = logps(model)
    with initial_weights(model):
        assert torch.equal(logps(model), logps(tiny_model(architecture)))
    assert torch.equal(logps(model), current)
    assert {p.requires_grad for p in trainable_parameters(model)} == {True}
    assert len(trainable_parameters(model)) == len(trainable_parameters(adapted(architecture)))


def test_only_the_named_layers_have_adapters():
    model = tiny_model("llama")
    add_adapters(model, AdapterConfig(2, 4.0, ("q_proj", "v_proj")), [START])
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    layers = {name.split(".")[4] for name in trainable if "lora" in name}
    assert layers == {"q_proj", "v_proj"}
    assert has_adapters(model)
    assert not has_adapters(tiny_model("llama"))


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match=r"lora\.targets: .*z_proj"):
        add_adapters(tiny_model("llama"), AdapterConfig(2, 4.0, ("z_proj",)), [START])


def test_adapters_depend_on_the_seed_and_keep_the_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = adapted("llama", moved=False), adapted("llama", moved=False)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(trainable_parameters(first), trainable_parameters(second), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "llama"])
def test_trained_rows_change_no_embedding(architecture, dtype):
    """With a gradient the hook puts the rows in, scaled and rounded as Gemma does; without one it leaves them out."""
    model = tiny_model(architecture).to(dtype)
    add_adapters(model, AdapterConfig(2, 4.0), [7, 9])
    ids = torch.tensor([[1, 7, 9, 4, 7]])
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        expected = embedding(ids)
    assert torch.equal(embedding(ids).detach(), expected)


def test_adapters_on_a_model_without_memory():
    """`nrt plan` counts them on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model("gemma2").config)
        add_adapters(model, AdapterConfig(2, 4.0), [7])
    assert has_adapters(model)


def test_merged_weights_have_the_buffers_that_a_saved_model_has():
    """GLM 4 MoE chooses its experts with a buffer, which no forward gives a gradient."""
    config = Glm4MoeConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    )
    model = Glm4MoeForCausalLM(config)
    names = set(model.state_dict())
    add_adapters(model, AdapterConfig(2, 4.0, ("q_proj",)), [START, END])
    merged = dict(merged_parameters(model))
    assert any(name.endswith("e_score_correction_bias") for name in merged)
    assert names == set(merged)
