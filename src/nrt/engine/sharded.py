"""Weights of which each process holds a part (FSDP2, `torch.distributed.fsdp.fully_shard`): for models whose optimiser's state, gradients
and float32 masters do not fit into one GPU.

The model itself stays an ordinary one without weights of its own. They are gathered for as long as `whole` lasts, in the model's type:
then it samples, scores and is saved like any other, in no lock step with other processes. Only forward and backward of an update go through
FSDP, which gathers a layer at a time and sends each process its part of the gradient.
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

from nrt.engine.processes import Processes
from nrt.engine.weights import layers_of
from nrt.scoring import Scorer
from nrt.types import Row, TokenScores

MOST = 0.6
"""Share of a GPU's memory that weights, gradients and the optimiser's state may take; activations, keys and values need the rest."""


def fits(model: nn.Module, reference: nn.Module | None) -> bool:
    """Whether one process can hold all of a model that it trains, and of a frozen one. What is not on CUDA counts as fitting."""
    device = next(model.parameters()).device
    return device.type != "cuda" or replica_bytes(model, reference) <= MOST * torch.cuda.get_device_properties(device).total_memory


def replica_bytes(model: nn.Module, reference: nn.Module | None) -> int:
    """Weights, float32 masters of shorter ones, gradients and AdamW's two moments; and the frozen model's weights."""
    trained = sum(p.numel() * (16 if p.dtype == torch.float32 else p.element_size() + 16) for p in model.parameters())
    return trained + sum(p.numel() * p.element_size() for p in reference.parameters()) if reference else trained


class Spread:
    """A model whose parameters are spread over the processes by their first dimension, and there only within `whole`."""

    def __init__(self, model: nn.Module, shards: Iterable[Tensor]) -> None:
        self._pairs = list(zip(model.parameters(), shards, strict=True))
        self._empty()

    @classmethod
    def evenly(cls, model: nn.Module, processes: Processes) -> Spread:
        """Shards of a frozen model, in its own type."""
        mesh = _mesh(model, processes)
        return cls(model, [distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None) for p in model.parameters()])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All processes enter and leave together."""
        for parameter, shard in self._pairs:
            parameter.data = gathered(shard.detach().to(parameter.dtype))
        try:
            yield
        finally:
            self._empty()

    def _empty(self) -> None:
        for parameter, _ in self._pairs:
            parameter.data = parameter.data.new_empty(0)


class ShardedWeights:
    """What the optimiser moves: this process's parts of the trained parameters, in float32. See `Weights`."""

    why = "each process holds a part of the weights, their gradients and the optimiser's state (FSDP2)"
    lockstep = True

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        dtype = next(model.parameters()).dtype
        self._short = dtype != torch.float32
        self.module = _Root(copy.deepcopy(model, {id(p): p for p in model.parameters()}))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh, seen = _mesh(model, processes), {}
        for part in (*layers_of(self.module), self.module):
            _own_float32(part, seen)
            shard: Any = fully_shard(part, mesh=mesh, mp_policy=policy)
            shard.set_gradient_divide_factor(1.0)  # the loss is divided already: gradients add up
            shard.set_force_sum_reduction_for_comms(True)
        named = dict(self.module.model.named_parameters())
        self.masters: dict[str, Tensor] = {name: p for name, p in named.items() if p.requires_grad}
        self.whole = Spread(model, named.values()).whole

    @property
    def copies(self) -> dict[str, Tensor]:
        """The masters that the model's own parameters do not tell."""
        return self.masters if self._short else {}

    def scores(self, scorer: Scorer, rows: Sequence[Row]) -> TokenScores:
        """With a gradient. Every process has to come here equally often, and to the backward too."""
        return TokenScores(*self.module(lambda: scorer(self.module.model, rows)))

    def reduce(self) -> None:
        """The backward did it."""

    def forget_gradients(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def publish(self) -> None:
        """What was moved is what the next forward gathers."""


class _Root(nn.Module):
    """Work with a model as a forward: FSDP then gathers what stands outside the layers, whichever parts of the model the work calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], TokenScores]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        scores = work()
        return scores.logp_N, scores.entropy_N, scores.lengths


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, of which this process holds the same part as of `other`."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _own_float32(part: nn.Module, seen: dict[int, nn.Parameter]) -> None:
    """Gives a part float32 parameters in place of those that it shares with the ordinary model; tied ones stay tied."""
    for module in part.modules():
        for name, p in module.named_parameters(recurse=False):
            if not isinstance(p, DTensor):
                own = seen.setdefault(id(p), nn.Parameter(p.detach().float(), p.requires_grad))
                setattr(module, name, own)


def _mesh(model: nn.Module, processes: Processes) -> DeviceMesh:
    return init_device_mesh(next(model.parameters()).device.type, (processes.size,))
