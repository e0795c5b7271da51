"""Trained parameters in float32 ("masters"): the model's own, or copies of lower-precision ones.

Master weights follow Micikevicius et al. (arXiv 1710.03740). In bfloat16 an update below 1/256 of a
weight is rounded away, and so is a small gradient added to a large sum. So the model's parameters
keep that type for forward, backward and sampling. Their gradients are summed, and the optimizer
updates them, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from nrt.distributed import SINGLE_PROCESS, ProcessGroup
from nrt.models import has_adapters
from nrt.scoring import Scorer
from nrt.types import Row, TokenScores


class Weights:
    """Trained parameters of a model, by name: tied ones once, frozen ones not at all.

    Each process holds all of them.
    """

    description = "each process holds all weights"
    lockstep = False  # True if all processes must run forward and backward equally often

    def __init__(self, model: nn.Module, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self.module = model
        self._processes = processes
        self._adapted = has_adapters(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float().requires_grad_()
                parameter.register_post_accumulate_grad_hook(self._move_gradient)
        self._master_of = {id(p): self.masters[name] for name, p in self._parameters.items()}

    @property
    def unsaved_masters(self) -> dict[str, Tensor]:
        """Masters that the saved model does not determine.

        They are the float32 copies of lower-precision parameters, and all masters of adapters,
        since a saved model has these merged.
        """
        return {
            name: master
            for name, master in self.masters.items()
            if self._adapted or master is not self._parameters[name]
        }

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Context in which the model has all of its weights, as it always has here."""
        return nullcontext()

    def scores(self, scorer: Scorer, rows: Sequence[Row]) -> TokenScores:
        """Score rows with gradient."""
        return scorer(self.module, rows)

    def all_reduce_gradients(self) -> None:
        """Sum the gradients over the processes.

        A parameter without gradient in every process keeps none.
        """
        masters = list(self.masters.values())
        processes_with_gradient = torch.tensor([float(m.grad is not None) for m in masters])
        self._processes.all_reduce([processes_with_gradient])
        counts = processes_with_gradient.tolist()
        self._processes.all_reduce(
            _gradient(master) for master, count in zip(masters, counts, strict=True) if count
        )

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """Return the float32 gradient of a trained parameter, to add to in place.

        It is zero if there was none.
        """
        return _gradient(self._master_of[id(parameter)])

    def zero_grad(self) -> None:
        """Remove all gradients.

        Also those of parameters: a backward that ran out of memory may not have moved them yet.
        """
        for name, p in self._parameters.items():
            p.grad = self.masters[name].grad = None

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Round the masters into the model's parameters."""
        for name, parameter in self._parameters.items():
            master = self.masters[name]
            if master is not parameter:
                parameter.copy_(master)

    def _move_gradient(self, parameter: Tensor) -> None:
        """Add the gradient of a lower-precision parameter to that of its master."""
        gradient = parameter.grad
        if gradient is not None:
            # A dense one is converted while it is added; torch cannot do so with a sparse one.
            self.gradient_of(parameter).add_(gradient.float() if gradient.is_sparse else gradient)
            parameter.grad = None


def layers_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers that transformers can run under gradient checkpointing."""
    return tuple(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which layers run under gradient checkpointing.

    They keep only their inputs; the backward computes the rest again. transformers' own switch
    needs training mode, in which layers such as OPT's and Falcon's would apply dropout.
    """

    def checkpointed(layer: nn.Module) -> Callable[..., Any]:
        return partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    with replaced_forwards(layers, checkpointed):
        yield


@contextmanager
def replaced_forwards(
    layers: Sequence[nn.Module], replacement: Callable[[nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """Context in which `replacement(layer)` is the forward of each layer; it can be nested."""
    previous = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = replacement(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, previous, strict=True):
            if forward is None:
                del layer.forward  # the instance's attribute, which hid the method of the class
            else:
                layer.forward = forward


def _gradient(master: Tensor) -> Tensor:
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad
