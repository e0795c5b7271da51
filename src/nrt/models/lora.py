"""LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314) with peft.

Small trained matrices are added to frozen layers. The model keeps its class; peft replaces its
layers by adapted ones.

The rows of START and END in the embedding and in the output head are trained too. Each is a
parameter that shares the memory of its row in the frozen table, so forward, sampling and export use
its values without special code. Forward hooks on the tables lead the gradient to these parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nrt.errors import InputError, first_line, install_hint
from nrt.models.tensors import named_tensors

ROW_PREFIX = "trained_row_"
"""Prefix of the parameter names of trained rows; the token id follows."""


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of the LoRA adapters."""

    rank: int  # of the trained matrices
    alpha: float  # the product of the matrices is scaled by alpha / rank
    targets: tuple[str, ...] = ("all-linear",)  # names of layers; "all-linear": all but the tables
    seed: int = 0  # of the initial values


def add_adapters(model: Any, config: AdapterConfig, token_ids: Iterable[int]) -> None:
    """Freeze the model, and add trained adapters and trained rows of these tokens.

    The adapters change nothing before the first update. Raises InputError if peft is not installed,
    if it finds none of the targets, or if an adapter could not be merged into its layer.
    """
    peft = _import_peft()
    model.requires_grad_(False)
    targets = _target_layers(model, config.targets)
    # GPT-2 stores its weights transposed
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            lora_config = peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=targets,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
                fan_in_fan_out=transposed,
            )
            peft.inject_adapter_in_model(lora_config, model)
        except ValueError as error:
            raise InputError(f"lora.targets: {first_line(error)}") from error
    _check_mergeable(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    dtype = embedding.weight.dtype
    for parameter in trainable_parameters(model):
        parameter.data = parameter.data.to(dtype)  # the optimiser holds float32 copies
    tokens = sorted(token_ids)
    embedding_rows = _row_parameters(embedding, tokens)
    tied = head.weight is embedding.weight
    head_rows = embedding_rows if tied else _row_parameters(head, tokens)
    _RowHook(embedding, embedding_rows)
    _RowHook(head, head_rows)
    model.eval()


def has_adapters(model: nn.Module) -> bool:
    """Return True if `add_adapters` was called on the model."""
    return any(ROW_PREFIX in name for name, _ in model.named_parameters())


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_row_parameters(table: nn.Module) -> dict[int, nn.Parameter]:
    """Return the rows of an embedding or a head that are separate parameters, by token id."""
    return {
        int(name.removeprefix(ROW_PREFIX)): parameter
        for name, parameter in table.named_parameters(recurse=False)
        if name.startswith(ROW_PREFIX)
    }


@contextmanager
def initial_weights(model: Any) -> Iterator[None]:
    """Restore the initial model for the duration of the context: no adapters, initial rows."""
    layers = [layer for _, layer in _lora_layers(model)]
    initial_rows = dict(_row_hook(model.get_input_embeddings()).initial)
    initial_rows.update(_row_hook(model.get_output_embeddings()).initial)
    current_rows = {row: row.detach().clone() for row in initial_rows}
    for layer in layers:
        layer.enable_adapters(False)
    _assign(initial_rows)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        _assign(current_rows)


@torch.no_grad()
def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all parameters and persistent buffers as in a model without adapters,
    one at a time.

    Adapters are merged into their layers; 4-bit weights get the type of the adapters.
    """
    layers = dict(_lora_layers(model))
    for name, layer in layers.items():
        yield f"{name}.weight", _merged_weight(layer)
        if layer.base_layer.bias is not None:
            yield f"{name}.bias", layer.base_layer.bias
    prefixes = tuple(f"{name}." for name in layers)
    for name, tensor in named_tensors(model):
        if ROW_PREFIX not in name and not name.startswith(prefixes):
            yield name, tensor


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(f"lora.rank needs peft ({error}); {install_hint('lora')}") from None
    return peft


def _target_layers(model: Any, names: tuple[str, ...]) -> list[str]:
    """Return the layer names that peft adapts.

    `all-linear` is resolved here, because peft's own "all-linear" includes routers and fused
    experts. Raises InputError if a name is that of a vocabulary table.
    """
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    if names == ("all-linear",):
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and id(module) not in tables
        ]
    table_names = [name for name, module in model.named_modules() if id(module) in tables]
    for table_name in table_names:
        for target in names:
            if table_name == target or table_name.endswith(f".{target}"):
                raise InputError(
                    f"lora.targets: {target} is a table of the vocabulary, which adapters cannot "
                    "train here; remove it (the rows of the markers are trained anyway)"
                )
    return list(names)


def _check_mergeable(model: nn.Module) -> None:
    """Raise InputError if an adapter is on anything but a linear layer.

    Otherwise training would succeed and saving would fail.
    """
    for name, layer in _lora_layers(model):
        if not isinstance(layer.base_layer, nn.Linear | Conv1D):
            raise InputError(
                f"lora.targets: {name} is a {type(layer.base_layer).__name__}, and adapters can "
                "only be merged into linear layers; "
                "name linear layers, such as q_proj,k_proj,v_proj,o_proj"
            )


def _row_parameters(table: Any, token_ids: list[int]) -> dict[int, nn.Parameter]:
    """Return a parameter for each token that is a view of its row, [1, D]."""
    weight = table.weight.data
    return {token: nn.Parameter(weight[token : token + 1]) for token in token_ids}


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of peft's layers, each with the name of the layer that it replaced."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _merged_weight(layer: Any) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    delta = layer.get_delta_weight("default")
    return (dequantize_module_weight(layer.base_layer).float() + delta.float()).to(delta.dtype)


class _RowHook:
    """Forward hook that gives the output of a table the gradient of its trained rows.

    The hook does not change the output's values, because a trained row is a view of the table.
    """

    def __init__(self, table: Any, rows: dict[int, nn.Parameter]) -> None:
        self.rows = rows
        self.initial = {row: row.detach().clone() for row in rows.values()}
        self.scale = _embedding_scale(table)
        for token, row in rows.items():
            table.register_parameter(f"{ROW_PREFIX}{token}", row)
        table.register_forward_hook(self)

    def __call__(self, table: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        for token, row in self.rows.items():
            if isinstance(table, nn.Embedding):
                output = torch.where((inputs[0] == token).unsqueeze(-1), row * self.scale, output)
            else:
                bias = None if table.bias is None else table.bias[token : token + 1]
                logit = nn.functional.linear(inputs[0], row, bias)
                column = torch.tensor([token], device=output.device)
                output = output.index_copy(-1, column, logit)
        return output


def _embedding_scale(table: Any) -> float:
    """Return the factor by which Gemma scales its embeddings on lookup, rounded as Gemma does."""
    scale = getattr(table, "scalar_embed_scale", None)
    if scale is None:
        scale = float(getattr(table, "embed_scale", 1.0))
    return torch.tensor(scale, device="cpu").to(table.weight.dtype).item()


def _row_hook(table: nn.Module) -> _RowHook:
    return next(hook for hook in table._forward_hooks.values() if isinstance(hook, _RowHook))


@torch.no_grad()
def _assign(values: dict[nn.Parameter, Tensor]) -> None:
    for row, value in values.items():
        row.copy_(value)
