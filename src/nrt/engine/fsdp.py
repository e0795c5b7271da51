"""Weights sharded over the processes with FSDP2 (`torch.distributed.fsdp.fully_shard`).

For models whose optimizer state, gradients and float32 masters do not fit into one GPU.

The model that samples, scores and is saved is an ordinary module with empty parameters.
`gathered_parameters` fills them for the length of a context, in the model's type. Inside it, the
processes need not run equally many forwards. Only forward and backward of an update go through
FSDP, which gathers one layer at a time and reduces the gradient to each process's shard.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nrt.distributed import ProcessGroup
from nrt.engine.weights import layers_of
from nrt.scoring import Scorer
from nrt.types import Row, TokenScores

MAX_MODEL_SHARE = 0.6
"""Share of a GPU's memory that weights, gradients and optimizer state may use.

Activations, keys and values need the rest.
"""


def replica_fits(model: nn.Module, reference: nn.Module | None) -> bool:
    """True if one process can train all of `model` and hold all of the frozen `reference`.

    Always true for a model outside CUDA.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return True
    memory = torch.cuda.get_device_properties(device).total_memory
    return replica_bytes(model, reference) <= MAX_MODEL_SHARE * memory


def replica_bytes(model: nn.Module, reference: nn.Module | None) -> int:
    """Return the bytes that one process needs without sharding.

    They are weights, float32 masters of lower-precision weights, gradients, the moments of AdamW,
    and the weights of the frozen model.
    """
    total = 0
    for parameter in model.parameters():
        is_lower = parameter.dtype != torch.float32
        total += parameter.numel() * (parameter.element_size() + 16 if is_lower else 16)
    if reference is not None:
        total += sum(p.numel() * p.element_size() for p in reference.parameters())
    return total


def gathered_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return what FSDP2 gathers during an update in a dtype.

    Two layers are gathered, the one that runs and the next, and the gradient of one. Embeddings and
    head stay gathered throughout a pass.
    """
    layers = layers_of(model)
    layer = max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return dtype.itemsize * (2 * layer + outside) + 4 * (layer + outside)


class ShardedParameters:
    """Parameters of a model, sharded over the processes by their first dimension.

    The model's own parameters are empty outside `gathered_parameters`.
    """

    def __init__(self, model: nn.Module, shards: Iterable[Tensor]) -> None:
        self._pairs = list(zip(model.parameters(), shards, strict=True))
        self._empty()

    @classmethod
    def of_frozen_model(cls, model: nn.Module, processes: ProcessGroup) -> ShardedParameters:
        """Shard the parameters of a frozen model, in its own type."""
        mesh = _mesh(model, processes)
        shards = [
            distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)
            for p in model.parameters()
        ]
        return cls(model, shards)

    @contextmanager
    def gathered_parameters(self) -> Iterator[None]:
        """Context in which the model has all of its weights. All processes must enter it."""
        for parameter, shard in self._pairs:
            parameter.data = full_tensor(shard.detach().to(parameter.dtype))
        try:
            yield
        finally:
            self._empty()

    def _empty(self) -> None:
        for parameter, _ in self._pairs:
            parameter.data = parameter.data.new_empty(0)


class ShardedWeights:
    """Trained parameters of a model, of which each process holds a float32 shard. See `Weights`."""

    description = (
        "each process holds a part of the weights, their gradients and the optimizer state (FSDP2)"
    )
    lockstep = True

    def __init__(self, model: nn.Module, processes: ProcessGroup) -> None:
        dtype = next(model.parameters()).dtype
        self._lower_precision = dtype != torch.float32
        # `module` shares the model's parameters until `_own_float32` replaces them
        self.module = _CallInForward(copy.deepcopy(model, {id(p): p for p in model.parameters()}))
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        mesh = _mesh(model, processes)
        for part in (*layers_of(self.module), self.module):
            _own_float32(part)
            sharded: Any = fully_shard(part, mesh=mesh, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # the loss is divided already: gradients add up
            sharded.set_force_sum_reduction_for_comms(True)
        named = dict(self.module.model.named_parameters())
        self.masters: dict[str, Tensor] = {name: p for name, p in named.items() if p.requires_grad}
        self.gathered_parameters = ShardedParameters(model, named.values()).gathered_parameters

    @property
    def unsaved_masters(self) -> dict[str, Tensor]:
        """Masters that the saved model does not determine: all, unless its type is float32."""
        return self.masters if self._lower_precision else {}

    def scores(self, scorer: Scorer, rows: Sequence[Row]) -> TokenScores:
        """Score rows with gradient.

        Every process must call this method, and run the backward, equally often.
        """
        return TokenScores(*self.module(lambda: scorer(self.module.model, rows)))

    def all_reduce_gradients(self) -> None:
        """Do nothing: FSDP's backward reduced the gradients."""

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for master in self.masters.values():
            master.grad = None

    def copy_to_model(self) -> None:
        """Do nothing: the next forward gathers the masters."""


class _CallInForward(nn.Module):
    """Root module of FSDP, whose forward calls a function on the model.

    FSDP then gathers the parameters outside the layers, whatever parts of the model the function
    calls.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, score: Callable[[], TokenScores]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        scores = score()
        return scores.logp_N, scores.entropy_N, scores.lengths


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a full tensor over the processes and devices as `other` is."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def _own_float32(part: nn.Module) -> None:
    """Replace the parameters that `part` shares with the ordinary model by float32 copies.

    Parameters that are tied within `part` stay tied. Nothing but the modules keeps the copies, so
    that sharding a part frees them before the next part is copied.
    """
    float32_of: dict[int, nn.Parameter] = {}  # by id of the original
    for module in part.modules():
        for name, p in module.named_parameters(recurse=False):
            if not isinstance(p, DTensor):
                if id(p) not in float32_of:
                    float32_of[id(p)] = nn.Parameter(p.detach().float(), p.requires_grad)
                setattr(module, name, float32_of[id(p)])


def _mesh(model: nn.Module, processes: ProcessGroup) -> DeviceMesh:
    return init_device_mesh(next(model.parameters()).device.type, (processes.size,))
