"""What the optimiser moves: float32 parameters themselves, or float32 copies of shorter ones (Micikevicius et al., arXiv 1710.03740).

In bfloat16 an update of less than 1/256 of a weight is rounded away, and so is a small gradient added to a large sum. So the model's
parameters stay short, for forward, backward and sampling; their gradients are summed, and they are updated, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


class Weights:
    """The trained parameters of a model, by name; tied ones once, frozen ones not at all."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {name: _master(p) for name, p in self._parameters.items()}
        self._master_of = {id(p): self.masters[name] for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            if self.masters[name] is not p:
                p.register_post_accumulate_grad_hook(self._move_gradient)

    @property
    def copies(self) -> dict[str, Tensor]:
        """The masters that are no parameters themselves."""
        return {name: master for name, master in self.masters.items() if master is not self._parameters[name]}

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """The float32 gradient of a trained parameter, to be added to in place; zeros at first."""
        master = self._master_of[id(parameter)]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def forget_gradients(self) -> None:
        """All of them, also one that a backward without memory left half moved."""
        for name, p in self._parameters.items():
            p.grad = self.masters[name].grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the model's parameters."""
        for name, master in self.copies.items():
            self._parameters[name].copy_(master)

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


def _master(parameter: nn.Parameter) -> Tensor:
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_()
