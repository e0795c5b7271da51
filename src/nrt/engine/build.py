"""Build a local engine: where its weights live, which scorer it uses, and its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from nrt.config import OptimizerConfig
from nrt.distributed import SINGLE_PROCESS, ProcessGroup, processes_here
from nrt.engine.compiled import CompiledChoice, CompileSetting, choose_compiled
from nrt.engine.fsdp import (
    ShardedParameters,
    ShardedWeights,
    gathered_bytes,
    local_part,
    replica_fits,
)
from nrt.engine.local import LocalEngine
from nrt.engine.memory import TokenBudget, auto_tokens, free_gpu_memory
from nrt.engine.optimizer import make_optimizer, make_schedule
from nrt.engine.recompute import (
    Setting,
    model_on_meta,
    recompute_by_need,
    resolve_setting,
)
from nrt.engine.weights import Weights, layers_of
from nrt.errors import InputError
from nrt.models import has_adapters, initial_weights
from nrt.models.attention import install_attention
from nrt.scoring import ScorerChoice, choose_scorer, same_choice
from nrt.types import Row


def build_engine(
    model: Any,
    config: OptimizerConfig,
    *,
    pad_id: int,
    updates: int,
    tokens_per_batch: int | Literal["auto"],
    reference: nn.Module | None = None,
    gradient_checkpointing: Setting = False,
    processes: ProcessGroup = SINGLE_PROCESS,
    parallel: Literal["auto", "ddp", "fsdp"] = "auto",
    probe: Sequence[Row] = (),
    packed: bool | None = None,
    compile_layers: CompileSetting = False,
    compiled_before: bool | None = None,
    beside_sampler: bool = False,
) -> LocalEngine:
    """Build the engine of a model that is to be trained.

    Args:
        updates: optimizer steps of the whole run, for the learning-rate schedule.
        reference: the frozen initial model. A model with adapters is its own reference, with the
            adapters off.
        parallel: each process holds all weights ("ddp") or a shard ("fsdp").
        probe: rows on which the scorers are compared.
        packed: the scorer that a resumed run began with; None: choose.
        compile_layers: run decoder layers compiled (`choose_compiled`).
        compiled_before: whether they did when a resumed run began; None: choose.
        beside_sampler: another thread samples on this GPU during updates.

    Raises InputError for a model without layers to recompute, one that cannot be sharded, and one
    that cannot be compiled although it is to be.
    """
    device = next(model.parameters()).device
    is_quantized = getattr(model, "is_quantized", False)
    recompute = resolve_setting(
        gradient_checkpointing,
        device.type,
        quantized=is_quantized,
        beside_sampler=beside_sampler,
    )
    if gradient_checkpointing == "auto" and not layers_of(model):
        recompute = False
    _check_supported(model, recompute=recompute, sharded=parallel == "fsdp")
    if parallel == "fsdp" and processes.size > 1 and config.is_8_bit:
        raise InputError(
            f"optimizer.name={config.name} cannot be sharded; set parallel=ddp, or "
            "optimizer.name=adamw"
        )
    _broadcast(model, reference, processes)
    if packed is None:
        choose = partial(_choose_alike, processes, rows=probe)
    else:
        choose = partial(same_choice, packed=packed)
    sharded = _is_sharded(model, reference, processes, parallel, config)
    counted = model_on_meta(model) if recompute == "auto" else None
    gathered = gathered_bytes(model, model.dtype) if sharded else 0
    check = partial(
        choose_compiled, model, compile_layers, probe, processes=processes, before=compiled_before
    )
    weights, choice, compiled = _place_weights(
        model, processes, choose, check, pad_id, sharded=sharded
    )
    by_need = None
    if counted is not None and choice.packed:  # padded rows are not counted: all are recomputed
        memory_left = partial(_memory_left, weights, device, gathered)
        by_need = recompute_by_need(counted, device.type, memory_left)
    gathered_reference = _gathered_reference(model, reference, processes, sharded=sharded)
    if reference is not None and choice.packed:
        install_attention(reference)  # it has the same architecture
    optimizer = make_optimizer(config, list(weights.masters.values()))
    return LocalEngine(
        model=model,
        reference=reference,
        gathered_reference=gathered_reference,
        processes=processes,
        scorer=choice.scorer,
        scorer_choice=choice,
        weights=weights,
        recomputed=layers_of(weights.module) if recompute else (),
        recompute_by_need=by_need,
        compiled=compiled,
        optimizer=optimizer,
        scheduler=make_schedule(config, optimizer, updates),
        budget=_token_budget(
            model,
            tokens_per_batch,
            processes,
            recompute=recompute is True,
            may_recompute=by_need is not None and not weights.lockstep,
            lockstep=weights.lockstep,
        ),
        max_grad_norm=config.max_grad_norm,
    )


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model without gradients."""
    return copy.deepcopy(model).requires_grad_(False)


def _memory_left(weights: Weights | ShardedWeights, device: torch.device, gathered: int) -> int:
    """Return the bytes that a micro-batch's activations may take on a GPU.

    Args:
        gathered: bytes that FSDP will gather for it.
    """
    masters = weights.masters.values()
    gradients = sum(local_part(master).nbytes for master in masters if master.grad is None)
    return free_gpu_memory(device) - gradients - gathered


def _check_supported(model: nn.Module, *, recompute: Setting, sharded: bool) -> None:
    """Raise InputError for settings that the model does not allow."""
    if recompute is True and not layers_of(model):
        raise InputError(
            f"{type(model).__name__} has no layers that can be recomputed; set "
            "gradient_checkpointing=false"
        )
    if sharded and has_adapters(model):
        raise InputError(
            "adapters cannot be sharded; set parallel=ddp (each process holds the frozen model, in "
            "4 bits with "
            "quantize=nf4)"
        )


def _broadcast(model: nn.Module, reference: nn.Module | None, processes: ProcessGroup) -> None:
    """Give all processes the weights of rank 0."""
    processes.broadcast(model.parameters())
    if reference is not None and reference is not model:
        processes.broadcast(reference.parameters())


def _is_sharded(
    model: nn.Module,
    reference: nn.Module | None,
    processes: ProcessGroup,
    parallel: Literal["auto", "ddp", "fsdp"],
    config: OptimizerConfig,
) -> bool:
    """True if each process holds a shard of the weights, not all of them."""
    if processes.size == 1 or has_adapters(model) or config.is_8_bit:
        return False
    return parallel == "fsdp" or (parallel == "auto" and not replica_fits(model, reference))


def _choose_alike(processes: ProcessGroup, *arguments: Any, rows: Sequence[Row]) -> ScorerChoice:
    """Return this process's choice of a scorer: padded, unless all processes choose packed rows.

    One GPU may lack a kernel or round differently. Other rows are other micro-batches, and
    processes must agree on how many there are.
    """
    choice = choose_scorer(*arguments, rows=rows)
    if processes.any(not choice.packed) and choice.packed:
        padded = same_choice(*arguments, packed=False)
        return replace(padded, why="rows are padded: another process cannot share prompts")
    return choice


def _place_weights(
    model: nn.Module,
    processes: ProcessGroup,
    choose: Callable[..., ScorerChoice],
    choose_compile: Callable[[ScorerChoice], CompiledChoice],
    pad_id: int,
    *,
    sharded: bool,
) -> tuple[Weights | ShardedWeights, ScorerChoice, CompiledChoice]:
    """Give each process all weights or a shard.

    Returns (weights, the model's scorer, whether its layers run compiled).
    """
    if sharded:
        choice = choose(model, pad_id)  # both while the model still has its weights
        compiled = choose_compile(choice)
        return ShardedWeights(model, processes), choice, compiled
    weights = Weights(model, processes)
    choice = choose(model, pad_id, weights.gradient_of)
    return weights, choice, choose_compile(choice)


def _gathered_reference(
    model: nn.Module, reference: nn.Module | None, processes: ProcessGroup, *, sharded: bool
) -> Callable[[], AbstractContextManager[None]]:
    """Return the context in which the reference has all of its weights. Shards the reference, too,
    if the model is sharded.
    """
    if reference is model:
        return partial(initial_weights, model)
    if reference is None or not sharded:
        return nullcontext
    return ShardedParameters.of_frozen_model(reference, processes).gathered_parameters


def _token_budget(
    model: nn.Module,
    tokens_per_batch: int | Literal["auto"],
    processes: ProcessGroup,
    *,
    recompute: bool,
    may_recompute: bool,
    lockstep: bool,
) -> TokenBudget:
    if tokens_per_batch == "auto":
        device = next(model.parameters()).device
        tokens = auto_tokens(model, device, recompute=recompute, processes=processes_here())
    else:
        tokens = tokens_per_batch
    may_halve = tokens_per_batch == "auto" and not lockstep
    return TokenBudget(
        tokens,
        may_halve=may_halve,
        may_recompute=may_recompute,
        processes=processes,
        lockstep=lockstep,
    )
