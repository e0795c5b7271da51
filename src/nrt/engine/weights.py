"""What the optimiser moves: float32 parameters themselves, or float32 copies of shorter ones (Micikevicius et al., arXiv 1710.03740).

In bfloat16 an update of less than 1/256 of a weight is rounded away, and so is a small gradient added to a large sum. So the model's
parameters stay short, for forward, backward and sampling; their gradients are summed, and they are updated, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from nrt.engine.processes import ALONE, Processes
from nrt.models import has_adapters
from nrt.scoring import Scorer
from nrt.types import Row, TokenScores


class Weights:
    """The trained parameters of a model, by name; tied ones once, frozen ones not at all. Each process holds all of them."""

    why = "each process holds all weights"
    lockstep = False  # whether all processes must forward and go backward equally often

    def __init__(self, model: nn.Module, processes: Processes = ALONE) -> None:
        self.module, self._processes, self._adapted = model, processes, has_adapters(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {name: _master(p) for name, p in self._parameters.items()}
        self._master_of = {id(p): self.masters[name] for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            if self.masters[name] is not p:
                p.register_post_accumulate_grad_hook(self._move_gradient)

    @property
    def copies(self) -> dict[str, Tensor]:
        """The masters that a saved model does not tell: those that are no parameters themselves, and all where adapters were merged."""
        return {name: master for name, master in self.masters.items() if self._adapted or master is not self._parameters[name]}

    def whole(self) -> AbstractContextManager[None]:
        """While the model is needed with all of its weights."""
        return nullcontext()

    def scores(self, scorer: Scorer, rows: Sequence[Row]) -> TokenScores:
        """With a gradient."""
        return scorer(self.module, rows)

    def reduce(self) -> None:
        """Sums the gradients over the processes; what has none in any of them keeps none."""
        there = torch.tensor([float(master.grad is not None) for master in self.masters.values()])
        self._processes.add([there])
        self._processes.add(_gradient(master) for master, n in zip(self.masters.values(), there.tolist(), strict=True) if n)

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """The float32 gradient of a trained parameter, to be added to in place; zeros at first."""
        return _gradient(self._master_of[id(parameter)])

    def forget_gradients(self) -> None:
        """All of them, also one that a backward without memory left half moved."""
        for name, p in self._parameters.items():
            p.grad = self.masters[name].grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the model's parameters."""
        for name, parameter in self._parameters.items():
            if (master := self.masters[name]) is not parameter:
                parameter.copy_(master)

    def _move_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.gradient_of(parameter).add_(parameter.grad.float())
            parameter.grad = None


def layers_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """What transformers would checkpoint."""
    return tuple(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """These layers keep their inputs only; the rest is computed again in the backward.

    Not by transformers' own switch, which asks for training mode: with it, layers such as OPT's and Falcon's would drop out.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's; the class's own is seen again


def _gradient(master: Tensor) -> Tensor:
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _master(parameter: nn.Parameter) -> Tensor:
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_()
