"""The counts of `nrt plan` against a real engine: its tensors, and torch's own counter of FLOPs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Shape, draw, llama, make_learner
from nrt.config import Config, build_config
from nrt.engine import counting
from nrt.engine.counting import count_token, count_update
from nrt.engine.meter import Meter
from nrt.engine.weights import Weights, layers_of, recomputing
from nrt.lab.base import BaseSettings, build_model
from nrt.models import AdapterConfig, add_adapters
from nrt.objective import METHODS
from nrt.plan import PlanRequest, RowLengths, make_plan
from nrt.plan.hardware import accelerator
from nrt.plan.memory_parts import RolloutMemory
from nrt.plan.meta_model import meta_model
from nrt.plan.resident import resident
from nrt.plan.work import count_flops, count_tokens, largest_micro_batch
from nrt.rollout.shared_prefix import SharedDecoder
from nrt.scoring import choose_scorer, token_logprobs
from nrt.trainer.samplers import bytes_to_come
from nrt.types import Row
from tests.steps import local_engine, record_gradient, step
from tests.tiny import tiny_model

METHOD = METHODS["nrt-ws-neg-log-p"]
SHORT = {"max_trace_tokens": 8}
"""A cap on traces for tests that sample with a counter attached, which is slow."""


def real_model(name: str, dtype: str = "float32"):
    """Return a model that has rows for the two markers."""
    if name == "miniature":
        return build_model(BaseSettings()).to(getattr(torch, dtype)).eval()
    if name in ("3m", "30m"):
        return llama(name, vocabulary=512, dtype=getattr(torch, dtype))
    return tiny_model(name, vocab_size=512).to(getattr(torch, dtype))


@pytest.fixture
def described(tmp_path):
    """Return a function that gives (real model, config of a folder with its config.json only)."""

    def make(name: str, dtype: str = "float32", **values) -> tuple[torch.nn.Module, Config]:
        model = real_model(name, dtype)
        architecture = type(model.config)(**model.config.to_dict())
        architecture.vocab_size -= 2
        architecture.save_pretrained(tmp_path / "model")
        settings = {
            "model": str(tmp_path / "model"),
            "dtype": dtype,
            "batch": 3,
            "traces": 4,
            "max_prompt_tokens": 40,
            "max_trace_tokens": 30,
            "max_answer_tokens": 20,
        }
        return model, build_config(settings | values)

    return make


def caps(config: Config) -> RowLengths:
    return RowLengths.caps(config)


def update_rows(config: Config):
    return tuple(largest_micro_batch(config, METHOD, caps(config), config.batch))


def shape_of(config: Config) -> Shape:
    lengths = (config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens)
    return Shape(config.batch, config.traces, *lengths)


def learner_of(model, config: Config, initial_reference: bool = True):
    reference = config.initial_reference and initial_reference
    return make_learner(
        model, shape_of(config), tokens_per_batch=16384, initial_reference=reference
    )


def run_step(learner, config: Config) -> None:
    learner = replace(learner, updates=config.updates_per_rollout)
    step(learner, draw(shape_of(config)), config.batch, seed=0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("miniature", "float32"),
        ("miniature", "bfloat16"),
        ("3m", "float32"),
        ("3m", "bfloat16"),
        ("30m", "float32"),
    ],
)
def test_resident_memory_is_the_engines_to_the_byte(described, name, dtype):
    model, config = described(name, dtype)
    planned = resident(meta_model(config), config, METHOD, gpus=1, parallel="ddp")
    engine = local_engine(learner_of(model, config))
    assert engine.reference is not None
    assert isinstance(engine.weights, Weights)
    for parameter in model.parameters():
        engine.weights.gradient_of(parameter)
    engine.optimizer.step()
    masters = engine.weights.masters.values()
    assert planned.weights == size(model.parameters())
    assert planned.masters == size(engine.weights.unsaved_masters.values())
    assert planned.gradients == size(master.grad for master in masters)
    assert planned.optimizer == size(moments(engine))
    assert planned.reference == size(engine.reference.parameters())
    assert planned.sampler == 0
    bytes_per_parameter = 18 if dtype == "bfloat16" else 16
    expected = bytes_per_parameter * count(model) + planned.reference
    assert planned.total == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_divide_what_is_trained(described, dtype):
    """16 bytes a parameter over all GPUs; bfloat16 weights exist only while they are needed."""
    _, config = described("3m", dtype, batch=4)
    model = meta_model(config)
    replica = resident(model, config, METHOD, gpus=1, parallel="fsdp")
    shard = resident(model, config, METHOD, gpus=4, parallel="fsdp")
    assert shard.weights == (0 if dtype == "bfloat16" else replica.weights // 4)
    for part in ("masters", "gradients", "optimizer", "reference"):
        assert getattr(shard, part) == getattr(replica, part) // 4
    expected = 16 * count(model) / 4
    assert shard.total - shard.reference == pytest.approx(expected, rel=1e-3)
    assert resident(model, config, METHOD, gpus=4, parallel="ddp") == replica
    plan = make_plan(PlanRequest(config, accelerator("cpu"), gpus=4, parallel="fsdp"))
    assert plan.memory.rollout is not None
    assert plan.memory.rollout.gathered == replica.weights
    assert 0 < plan.memory.update.gathered < 2 * replica.weights + replica.gradients


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_counted_as_the_engine_has_them(described, dtype):
    """Resident memory to the byte, activations within 2 %, FLOPs within 1 %."""
    model, config = described("3m", dtype, lora={"rank": 4}, **SHORT)
    empty = meta_model(config)
    add_adapters(model, AdapterConfig(4, 8.0), [510, 511])
    planned = resident(empty, config, METHOD, gpus=1, parallel="ddp")
    learner = learner_of(model, config, initial_reference=False)
    engine = local_engine(learner)
    by_size = sorted(model.parameters(), key=torch.numel)  # trained rows are views of larger tables
    storages = {p.untyped_storage().data_ptr(): p for p in by_size}
    assert planned.weights == size(storages.values())
    flops = count_flops(
        config,
        METHOD,
        caps(config),
        count_token(empty),
        recomputes=lambda tokens: False,
        frozen_head=True,
    )
    gradients = record_gradient(engine)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run_step(learner, config)
    assert flops.update + flops.rollout == pytest.approx(counter.get_total_flops(), rel=0.01)
    unsaved = size(engine.weights.unsaved_masters.values())
    assert planned.masters == (unsaved if dtype == "bfloat16" else 0)
    assert planned.gradients == size(gradients.values())
    assert planned.optimizer == size(moments(engine))
    assert planned.reference == 0
    rows = update_rows(config)
    kept = count_update(empty, rows, recompute=False, device_type="cpu").kept
    assert kept == pytest.approx(saved_bytes(engine, rows), rel=0.02)


@pytest.mark.parametrize(
    ("name", "dtype", "recompute"),
    [
        ("miniature", "float32", False),
        ("3m", "float32", False),
        ("3m", "bfloat16", False),
        ("30m", "float32", False),
        ("qwen3", "float32", False),
        ("miniature", "float32", True),
        ("3m", "float32", True),
        ("3m", "bfloat16", True),
        ("30m", "float32", True),
    ],
)
def test_activations_are_what_autograd_saves(described, name, dtype, recompute):
    """Within 2 % of the storages that the real forward saves, without parameters.

    With recomputation within 10 %: the layers' arguments hold the rotary tables, not autograd.
    """
    model, config = described(name, dtype)
    rows = update_rows(config)
    planned = count_update(meta_model(config), rows, recompute=recompute, device_type="cpu")
    engine = local_engine(learner_of(model, config))
    with recomputing(layers_of(model) if recompute else ()):
        saved = saved_bytes(engine, rows)
    assert planned.kept == pytest.approx(saved, rel=0.10 if recompute else 0.02)


def saved_bytes(engine, rows) -> int:
    """Return the bytes that the forward saves for the backward, without parameters."""
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        engine.scorer(engine.model, rows)
    own = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    return sum(storage.nbytes() for address, storage in saved.items() if address not in own)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_of_an_update(described, recompute):
    """Within 15 % of the tensors alive at once in a real forward and backward on a CPU."""
    lengths = {"max_prompt_tokens": 200, "max_trace_tokens": 100, "max_answer_tokens": 100}
    model, config = described("3m", **lengths)
    rows = update_rows(config)
    planned = count_update(meta_model(config), rows, recompute=recompute, device_type="cpu")
    engine = local_engine(learner_of(model, config))
    assert isinstance(engine.weights, Weights)
    for parameter in model.parameters():
        engine.weights.gradient_of(parameter)
    with Meter() as meter, recomputing(layers_of(model) if recompute else ()):
        engine.scorer(model, rows).logp_N.sum().backward()
    assert planned.peak == pytest.approx(meter.peak, rel=0.15)


def deep_config(folder, name: str, layers: int, **settings) -> Config:
    """Return the config of a tiny model with some layers; the folder has its config.json only."""
    tiny_model(name, vocab_size=512, num_hidden_layers=layers).config.save_pretrained(folder)
    return build_config({"model": str(folder), "batch": 2} | settings)


@pytest.mark.parametrize(
    ("name", "layers", "period", "settings"),
    [
        ("llama", 5, 1, {}),
        ("llama", 5, 1, {"dtype": "bfloat16"}),
        ("llama", 5, 1, {"lora": {"rank": 4}}),
        ("gemma2", 7, 2, {}),  # windows alternate
    ],
)
def test_two_depths_give_the_counts_of_all_layers(
    tmp_path, monkeypatch, name, layers, period, settings
):
    config = deep_config(tmp_path, name, layers, **settings)
    rows = tuple(largest_micro_batch(config, METHOD, RowLengths(40, 30, 20), config.batch))
    model = meta_model(config)
    depths = counting._depths(model)
    assert depths is not None
    assert depths.period == period

    def counts():
        updates = [
            count_update.__wrapped__(model, rows, recompute=recompute)
            for recompute in (False, True)
        ]
        return count_token.__wrapped__(model), updates

    from_two_depths = counts()
    monkeypatch.setattr(counting, "_depths", lambda model: None)
    assert counts() == from_two_depths


def test_large_tiles_count_the_same_memory(tmp_path, monkeypatch):
    """Within 1 %: a CPU's tiles of a large vocabulary are too many to run through."""
    model = meta_model(deep_config(tmp_path, "llama", 2, tokens_per_batch=512))
    row = Row((0,) * 8, (0,) * 2048, (), end_sampled=False)
    monkeypatch.setitem(token_logprobs.TILE, "cpu", 2**12)

    def count(most):
        monkeypatch.setattr(counting, "MAX_TILES", most)
        memory = count_update.__wrapped__(model, (row,), recompute=False, device_type="cpu")
        return memory, token_logprobs.TILE["meta"]

    (exact, tile), (counted, larger) = count(10**9), count(64)
    assert (tile, larger) == (2**12, 2048 * 514 // 64)
    assert counted.kept == exact.kept
    assert counted.peak == pytest.approx(exact.peak, rel=0.01)


def test_a_model_whose_layers_differ_is_counted_as_a_whole(tmp_path):
    model = meta_model(deep_config(tmp_path, "llama", 6))
    last: Any = layers_of(model)[-1]
    last.self_attn.scaling = 1.0
    assert counting._depths(model) is None


def test_keys_and_values_are_the_decoders(described):
    model, config = described("3m")
    rollout = make_plan(PlanRequest(config, accelerator("cpu"))).memory.rollout
    choose_scorer(model, 0)
    prompts = []
    for prompt in range(config.batch):
        prompts += [(5 + prompt,) * (config.max_prompt_tokens + 1)] * config.traces
    with torch.no_grad():
        decoder = SharedDecoder(model, prompts, 0, config.max_trace_tokens)
        decoder.advance(torch.zeros(len(prompts), dtype=torch.long))
    assert isinstance(rollout, RolloutMemory)
    assert rollout.rows == len(prompts)
    layers = decoder._layers
    assert rollout.prompts == sum(size([x.prompt_keys, x.prompt_values]) for x in layers)
    assert rollout.cache == sum(size([x.own_keys, x.own_values]) for x in layers)


def attention_flops(q, k, v, dropout=0.0, is_causal=False, **_) -> int:
    """Return the operations of one call of the CPU's flash attention.

    A triangle counts its diagonal and what is below.
    """
    queries, keys = q[2], k[2]
    pairs = queries * (queries + 1) // 2 if is_causal else queries * keys
    return 2 * q[0] * q[1] * (q[3] + v[3]) * pairs


def attention_backward_flops(grad, q, k, v, out, lse, dropout, is_causal, **_) -> int:
    return attention_flops(q, k, v, dropout, is_causal) * 5 // 2


FORMULAS = {
    torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}
"""FLOPs of operations that torch's counter leaves out."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"traces": 2, "max_prompt_tokens": 300},
        {"gradient_checkpointing": True},
        {"initial_reference": False, "batch": 1},
    ],
)
@pytest.mark.parametrize("name", ["3m", "qwen3"])
def test_flops_are_those_that_torch_counts(described, name, settings):
    """A whole step within 1 %: sampling, the initial model, one pass with its backward."""
    model, config = described(name, **SHORT, **settings)
    recompute = config.gradient_checkpointing is True
    planned = count_flops(
        config,
        METHOD,
        caps(config),
        count_token(meta_model(config)),
        recomputes=lambda tokens: recompute,
    )
    learner = learner_of(model, config)
    if recompute:
        local_engine(learner).recomputed = layers_of(model)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run_step(learner, config)
    assert planned.total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nrt-ws-neg-log-p", {}),
        ("nrt-ws-neg-log-p", {"initial_reference": False}),
        ("nrt-ws-neg-log-p", {"tokens_per_batch": 150}),
        ("nrt-ws-neg-log-p", {"batch": 4, "updates_per_rollout": 2}),
        ("latro", {}),
    ],
)
def test_tokens_are_those_that_pass_the_embeddings(described, name, settings):
    """Also if a group does not fit into a micro-batch.

    Then it is scored first, and each part forwards the prompt again.
    """
    model, config = described("3m", **settings)
    method = METHODS[name]
    planned = count_tokens(config, method, caps(config))
    learner = replace(learner_of(model, config), method=method)
    engine = local_engine(learner)
    if config.tokens_per_batch != "auto":
        engine.budget.tokens = config.tokens_per_batch
    forwarded = []

    def count_ids(module, inputs, output) -> None:
        forwarded.append(inputs[0].numel())

    for own_or_initial in (model, engine.reference):
        if own_or_initial is not None:
            causal_lm: Any = own_or_initial
            causal_lm.get_input_embeddings().register_forward_hook(count_ids)
    run_step(learner, config)
    decoded = planned.sampled - config.batch * config.traces  # the last token is not forwarded
    assert sum(forwarded) == planned.prefilled + decoded + planned.scored + planned.trained


def test_the_run_expects_of_its_first_update_what_the_plan_does(described):
    model, config = described("3m", "bfloat16")
    planned = resident(meta_model(config), config, METHOD, gpus=1, parallel="ddp")
    engine = local_engine(learner_of(model, config))
    assert bytes_to_come(engine, "adamw", gradients=True) == planned.gradients + planned.optimizer


def moments(engine) -> list[torch.Tensor]:
    return [tensor for state in engine.optimizer.state.values() for tensor in state.values()]


def size(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())
