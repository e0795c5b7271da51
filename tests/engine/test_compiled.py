"""Compiled decoder layers: how often they are compiled, their numbers, and what happens where they fail.

On a CPU they are compiled as on a GPU, but for the kernels; with a C++ compiler also by Inductor.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as flex_module

from nrt.config import OptimizerConfig
from nrt.distributed import SINGLE_PROCESS
from nrt.engine import compiled
from nrt.engine.build import build_engine
from nrt.engine.compiled import choose_compiled, compile_fault, compiling
from nrt.engine.weights import layers_of, recomputing
from nrt.errors import InputError
from nrt.models.lora import AdapterConfig, add_adapters
from nrt.scoring import PackedScorer, PaddedScorer, choose_scorer, flex, prefix_attention
from nrt.types import Row
from tests.engine.test_several import gradient_of_batch
from tests.scoring.test_packed import gradients, grouped, packed_model
from tests.tiny import PAD, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # of torch's own code while it traces

LAYOUTS = [[(150, [100, 90])], [(200, [30]), (7, [60, 80])], [(20, [31, 5])]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Compile without kernels; return the graphs that were compiled."""
    found: list[object] = []

    def record(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield found
    compiled._compiled.cache_clear()
    torch._dynamo.reset()


def scores_and_gradients(model: nn.Module, rows: list[Row]) -> list[torch.Tensor]:
    scores = PackedScorer()(model, rows)
    loss = scores.logp_N @ torch.linspace(-1, 1, len(scores.logp_N))
    found: Any = model
    return [scores.logp_N.detach(), scores.entropy_N, *gradients(found, loss).values()]


def assert_equal_compiled(model: nn.Module, rows: list[Row]) -> None:
    """Scores to 1e-5 nats and gradients to 1e-5 of the largest, also where layers are recomputed."""
    expected = scores_and_gradients(model, rows)
    largest = max(gradient.abs().max().item() for gradient in expected[2:])
    assert largest > 0
    layers = layers_of(model)
    for recomputed in ((), layers):
        with compiling(layers), recomputing(recomputed):
            found = scores_and_gradients(model, rows)
        assert len(found) == len(expected)
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            allowed = 1e-5 if i < 2 else 1e-5 * largest
            torch.testing.assert_close(ours, theirs, atol=allowed, rtol=0)
    assert not any("forward" in vars(layer) for layer in layers)


SLOW = [
    pytest.param(architecture, marks=pytest.mark.slow)
    for architecture in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3")
]


@pytest.mark.parametrize("architecture", ["llama", *SLOW])
def test_layers_are_compiled_once_for_all_lengths(graphs: list[object], architecture: str) -> None:
    """A layer is five graphs, with and without gradient: only attention is left out."""
    model = packed_model(architecture)
    numbers = []
    for seed, groups in enumerate(LAYOUTS):
        rows = grouped(seed, groups)
        assert_equal_compiled(model, rows)
        with compiling(layers_of(model)), torch.no_grad():
            PackedScorer()(model, rows)
        numbers.append(len(graphs))
    assert 0 < numbers[0] <= 10
    assert numbers == [numbers[0]] * len(LAYOUTS)
    breaks = counters["graph_break"]
    assert breaks
    assert all("attend" in reason for reason in breaks), breaks


def test_a_resumed_run_may_ask_for_compiled_layers() -> None:
    """`compile=true` is not ignored because the run began without."""
    model = packed_model("llama")
    choice = choose_scorer(model, pad_id=0)
    padded = replace(choice, scorer=PaddedScorer(pad_id=0))
    arguments = (True, [], padded, SINGLE_PROCESS)
    with pytest.raises(InputError, match="compile=true: layers are compiled only where"):
        choose_compiled(model, *arguments, before=False)
    assert not choose_compiled(model, "auto", [], choice, SINGLE_PROCESS, before=False).is_on


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU")
def test_inductor_has_the_same_numbers() -> None:
    torch._dynamo.reset()
    compiled._compiled.cache_clear()
    model = packed_model("gemma3")
    assert_equal_compiled(model, grouped(0, LAYOUTS[1]))
    assert_equal_compiled(model, grouped(1, LAYOUTS[2]))
    compiled._compiled.cache_clear()


@pytest.mark.slow
def test_the_attention_of_a_gpu_inside_compiled_layers(
    graphs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention is compiled by itself."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *qkv: None)
    monkeypatch.setattr(prefix_attention, "FLEX_DEVICES", ("cpu",))
    monkeypatch.setattr(flex, "_compiled", [])
    model = packed_model("gemma2")
    numbers = []
    for seed, groups in enumerate(LAYOUTS):
        assert_equal_compiled(model, grouped(seed, groups))
        numbers.append(len(graphs))
    assert 0 < numbers[0] <= numbers[2] <= 12  # once more for a layout of a single block


@pytest.mark.slow
def test_layers_with_adapters(graphs: list[object]) -> None:
    pytest.importorskip("peft")
    model = packed_model("llama")
    add_adapters(model, AdapterConfig(rank=4, alpha=8.0), [5, 6])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    assert_equal_compiled(model, grouped(0, LAYOUTS[0]))
    number = len(graphs)
    assert_equal_compiled(model, grouped(1, LAYOUTS[1]))
    assert 0 < number == len(graphs)


def engine_of(setting: Any, **settings: Any) -> Any:
    return build_engine(
        tiny_model("llama"),
        OptimizerConfig(),
        pad_id=PAD,
        updates=1,
        tokens_per_batch=1000,
        compile_layers=setting,
        **settings,
    )


def test_an_engine_scores_and_trains_with_compiled_layers(graphs: list[object]) -> None:
    assert not engine_of("auto").compiled.is_on, "a CPU compiles only if it is asked to"
    found = []
    for setting in (False, True):
        engine = engine_of(setting, gradient_checkpointing=True)
        assert engine.compiled.is_on == setting
        before = len(graphs)
        gradient_of_batch(engine, prompts=2)
        assert len(graphs) == before, "the probe has compiled all that an update needs"
        found.append(torch.cat([p.grad.flatten() for p in engine.model.parameters()]))
    assert graphs
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max() > 0


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """On automatic the run goes on with a warning; if compiled layers were asked for, it ends."""

    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    model = tiny_model("llama")
    choose_scorer(model, PAD)  # gives it nrt's attention
    rows = grouped(0, LAYOUTS[2])
    fault = compile_fault(model, rows)
    assert "cannot be compiled here: Failed to find C compiler" in fault
    with pytest.raises(InputError, match=r"compile=true: .*C compiler.*set compile=false"):
        engine_of(True)
    compiled._compiled.cache_clear()


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_other_numbers_are_a_fault(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    def scaled(forward: Any) -> Any:
        return lambda layer, *args, **kwargs: forward(layer, *args, **kwargs) * wrong

    monkeypatch.setattr(compiled, "_compiled", scaled)
    model = packed_model("llama", initializer_range=0.1)
    fault = compile_fault(model, grouped(0, LAYOUTS[2]))
    assert "compiled layers change log-probabilities by" in fault


def test_a_model_that_pads_its_rows_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no fault on automatic, since nobody can mend it."""
    model = tiny_model("bloom")
    choice = choose_scorer(model, PAD)
    with pytest.raises(InputError, match="only where prompts are shared"):
        choose_compiled(model, True, [], choice, processes=SINGLE_PROCESS)
    monkeypatch.setattr(compiled, "AUTO_DEVICES", ("cpu",))
    assert choose_compiled(model, "auto", [], choice, SINGLE_PROCESS) == compiled.NOT_COMPILED
