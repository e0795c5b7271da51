"""LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314) by peft: small trained matrices beside a model's frozen ones.

The model keeps its class: adapters become layers within it. What is trained besides are the rows of START and END, in both tables of
embeddings; each is a parameter that *is* its row, a view of the frozen table, so that forward, sampling and export see it without
being told, and hooks lead its gradient there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nrt.errors import InputError

ROW = "trained_row_"
"""What the parameters of trained rows are called, with their token's id behind it."""


@dataclass(frozen=True)
class Adapters:
    """rank     of the trained matrices
    alpha    their product is scaled by alpha / rank
    targets  names of the layers; "all-linear" alone: all but the vocabulary's
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("all-linear",)
    seed: int = 0


def add_adapters(model: Any, how: Adapters, token_ids: Iterable[int]) -> None:
    """Freezes the model; what is trained are adapters, which change nothing at first, and the rows of these tokens.

    Raises InputError where peft is not installed, finds none of the targets, or would adapt what cannot be merged again.
    """
    peft = _peft()
    model.requires_grad_(False)
    targets = _targets(model, how.targets)
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        try:
            config = peft.LoraConfig(
                r=how.rank,
                lora_alpha=how.alpha,
                target_modules=targets,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
                fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's way of storing weights
            )
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise InputError(f"lora.targets: {str(error).splitlines()[0]}") from error
    _check_mergeable(model)
    dtype = model.get_input_embeddings().weight.dtype
    for parameter in trained(model):
        parameter.data = parameter.data.to(dtype)  # the optimiser's copies are in float32 anyway
    tokens, first, last = sorted(token_ids), model.get_input_embeddings(), model.get_output_embeddings()
    rows = {token: nn.Parameter(first.weight.data[token : token + 1]) for token in tokens}
    _Rows(first, rows)
    _Rows(last, rows if last.weight is first.weight else {token: nn.Parameter(last.weight.data[token : token + 1]) for token in tokens})
    model.eval()


def _targets(model: Any, names: tuple[str, ...]) -> list[str]:
    """What peft is to adapt. All linear layers are named here: peft's own "all-linear" takes in routers and fused experts as well.

    Raises InputError for the vocabulary's tables, by name.
    """
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    if names == ("all-linear",):
        return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and id(module) not in tables]
    for table in [name for name, module in model.named_modules() if id(module) in tables]:
        for target in names:
            if table == target or table.endswith(f".{target}"):
                raise InputError(
                    f"lora.targets: {target} is a table of the vocabulary, which adapters cannot train here; leave it out "
                    "(its rows of the markers are trained as they are)"
                )
    return list(names)


def _check_mergeable(model: nn.Module) -> None:
    """Raises InputError for adapters on anything but linear layers, before a run is trained that could not be saved."""
    for name, layer in _layers(model):
        if not isinstance(layer.base_layer, nn.Linear | Conv1D):
            raise InputError(
                f"lora.targets: {name} is a {type(layer.base_layer).__name__}, and adapters can be merged into linear layers alone; "
                "name linear layers, such as q_proj,k_proj,v_proj,o_proj"
            )


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was called on it."""
    return any(ROW in name for name, _ in model.named_parameters())


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_rows(table: nn.Module) -> dict[int, nn.Parameter]:
    """The rows of an embedding or a head that are parameters of their own, by token."""
    own = table.named_parameters(recurse=False)
    return {int(name.removeprefix(ROW)): parameter for name, parameter in own if name.startswith(ROW)}


@contextmanager
def initial(model: Any) -> Iterator[None]:
    """The model as it was before training: adapters off, rows as they began."""
    layers, first = [layer for _, layer in _layers(model)], {**_hook(model.get_input_embeddings()).first}
    first |= _hook(model.get_output_embeddings()).first
    now = {row: row.detach().clone() for row in first}
    for layer in layers:
        layer.enable_adapters(False)
    with torch.no_grad():
        for row, value in first.items():
            row.copy_(value)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        with torch.no_grad():
            for row, value in now.items():
                row.copy_(value)


@torch.no_grad()
def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter as the model would have it without adapters, one at a time; 4-bit weights in the adapters' type."""
    layers = dict(_layers(model))
    for name, layer in layers.items():
        yield f"{name}.weight", _merged_weight(layer)
        if layer.base_layer.bias is not None:
            yield f"{name}.bias", layer.base_layer.bias
    for name, parameter in model.named_parameters():
        if ROW not in name and not any(name.startswith(f"{layer}.") for layer in layers):
            yield name, parameter


def _merged_weight(layer: Any) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    delta = layer.get_delta_weight("default")
    return (dequantize_module_weight(layer.base_layer).float() + delta.float()).to(delta.dtype)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's, by the names of the layers that they stand for."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


class _Rows:
    """A forward hook: what comes out of a table has the gradient of its trained rows. Values stay: a row is a view of the table."""

    def __init__(self, table: Any, rows: dict[int, nn.Parameter]) -> None:
        self.rows, self.first = rows, {row: row.detach().clone() for row in rows.values()}
        self.scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's embeddings are scaled as they are looked up
        for token, row in rows.items():
            table.register_parameter(f"{ROW}{token}", row)
        table.register_forward_hook(self)

    def __call__(self, table: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        for token, row in self.rows.items():
            if isinstance(table, nn.Embedding):
                output = torch.where((inputs[0] == token).unsqueeze(-1), row * self.scale, output)
            else:
                bias = None if table.bias is None else table.bias[token : token + 1]
                place = torch.tensor([token], device=output.device)
                output = output.index_copy(-1, place, nn.functional.linear(inputs[0], row, bias))
        return output


def _hook(table: nn.Module) -> _Rows:
    return next(hook for hook in table._forward_hooks.values() if isinstance(hook, _Rows))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(f"lora.rank needs peft ({error}): pip install 'native-reasoning[lora]'") from None
    return peft
