"""Compiled decoder layers: torch.compile fuses norms, rotary embedding, activation and residuals.

Layers are compiled only where packed rows are scored. Samplers, whose caches grow by one token at a
time, run them as they are. Attention is left out of the graphs: `models.attention.attend` is not
traced, and has its own kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from nrt.distributed import ProcessGroup
from nrt.engine.weights import layers_of, replaced_forwards
from nrt.errors import InputError, first_line, is_out_of_memory
from nrt.models.rounding import difference
from nrt.scoring import ScorerChoice
from nrt.scoring.flex import MAX_COMPILATIONS
from nrt.scoring.packed import score_packed
from nrt.scoring.packed_check import (
    FORWARD_ERRORS,
    MIN_TOLERANCE,
    embedding_gradient,
    relative_difference,
)
from nrt.scoring.packing import lay_out
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.scoring.probe import made_up_rows
from nrt.types import Row

CompileSetting = bool | Literal["auto"]
"""Value of the setting `compile`."""

AUTO_DEVICES = ("cuda",)
"""Devices on which compile=auto compiles. On a CPU it needs a C++ compiler and takes a minute."""

COMPILED = "decoder layers are compiled: norms, rotary embedding and activation are fused"
"""Line in the log of a run whose layers are compiled."""


@dataclass(frozen=True)
class CompiledChoice:
    """Whether a model's layers run compiled, and why not where they were to."""

    is_on: bool
    fault: str = ""

    def layers_of(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the model's layers run compiled, if they do."""
        return compiling(layers_of(model)) if self.is_on else nullcontext()


NOT_COMPILED = CompiledChoice(False)


def choose_compiled(
    model: nn.Module,
    setting: CompileSetting,
    rows: Sequence[Row],
    choice: ScorerChoice,
    processes: ProcessGroup,
    *,
    before: bool | None = None,
) -> CompiledChoice:
    """Choose whether the layers run compiled: the same in all processes.

    With `auto` they do on CUDA, where rows are packed and weights have more than 4 bits.

    Args:
        rows: rows of the data, to compare scores; empty: made-up rows.
        choice: the model's scorer.
        before: whether they did when a resumed run began. Its numbers are not judged again: weights
            change during a run, and so could the verdict.

    Raises InputError if `setting` is True and they cannot.
    """
    is_off = before is False or not _is_usual(model, choice)
    if not setting or (setting == "auto" and is_off):
        return NOT_COMPILED
    if not choice.packed:
        fault = "layers are compiled only where prompts are shared"
    else:
        causal_lm: Any = model
        rows = rows or made_up_rows(causal_lm.config.get_text_config().vocab_size)
        fault = compile_fault(model, rows, judged=before is None)
    if setting is True and fault:
        raise InputError(f"compile=true: {fault}; set compile=false")
    if processes.any(bool(fault)):
        return CompiledChoice(False, fault or "another process cannot compile its layers")
    return CompiledChoice(True)


def _is_usual(model: nn.Module, choice: ScorerChoice) -> bool:
    """True if compile=auto compiles a model of this kind."""
    device = next(model.parameters()).device
    is_quantized = getattr(model, "is_quantized", False)
    has_layers = bool(layers_of(model))
    return device.type in AUTO_DEVICES and not is_quantized and choice.packed and has_layers


@contextmanager
def compiling(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which the layers run compiled, for any number of tokens."""
    # It holds in this thread. Autograd's thread, in which layers are recomputed on CUDA, finds the
    # graphs that the forward has compiled.
    limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILATIONS)
    torch._dynamo.config.recompile_limit = limit

    def compiled(layer: nn.Module) -> Callable[..., Any]:
        return partial(_compiled(type(layer).forward), layer)

    with warnings.catch_warnings(), replaced_forwards(layers, compiled):
        # Dynamo reads this attribute of all tensors
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        # Inductor's advice on CUDA; nrt leaves products of float32 exact
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        yield


def compile_fault(model: Any, rows: Sequence[Row], *, judged: bool = True) -> str:
    """Return why the model's layers cannot run compiled; "" if they can.

    Numbers and gradients of the packed scorer are compared with and without compiled layers.
    Compiled layers keep in float32 what others round to bfloat16 between operations.

    Args:
        model: with nrt's attention.
        rows: rows to score.
        judged: False: only compile.
    """
    layers = layers_of(model)
    if not layers:
        return f"{type(model).__name__} has no layers that can be compiled"
    layout = lay_out(rows, next(model.parameters()).device)

    def score() -> Any:
        return score_packed(model, PrefixAttention(layout))

    try:
        with _frozen_head(model):
            expected, expected_d = embedding_gradient(model, score)
            with compiling(layers):
                scores, gradient_d = embedding_gradient(model, score)
    except (*FORWARD_ERRORS, TorchDynamoException) as error:
        if is_out_of_memory(error):
            raise
        cause = getattr(error, "inner_exception", error)
        return f"decoder layers cannot be compiled here: {first_line(cause)}"
    if not judged:
        return ""
    dtype = next(model.parameters()).dtype
    tolerance = MIN_TOLERANCE[dtype]
    found = difference(scores.logp_N, expected.logp_N, dtype)
    if not found <= tolerance:  # also true of NaN
        return (
            f"compiled layers change log-probabilities by {found:.1e} nats, where "
            f"{tolerance:.1e} are allowed"
        )
    found = relative_difference(gradient_d, expected_d)
    allowed = 10 * tolerance
    if not found <= allowed:
        return (
            f"compiled layers change gradients by {found:.1e} of the largest, where "
            f"{allowed:.1e} are allowed"
        )
    return ""


@contextmanager
def _frozen_head(model: Any) -> Iterator[None]:
    """Context in which the output head gets no gradient, whose product is as large as the head."""
    weight = model.get_output_embeddings().weight
    was_trained = weight.requires_grad
    weight.requires_grad_(False)
    try:
        yield
    finally:
        weight.requires_grad_(was_trained)


@lru_cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled forward of a class of layers, which all of them share."""
    return torch.compile(forward, dynamic=True)
