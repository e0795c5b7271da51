"""Tensors that a saved model holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all parameters and persistent buffers, tied ones once.

    Some models have buffers that forwards need and training leaves alone: Gemma 4's `layer_scalar`,
    the `e_score_correction_bias` of GLM 4 MoE and DeepSeek V3.
    """
    yield from model.named_parameters()
    yield from persistent_buffers(model)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, buffer) of all buffers that a state dict has."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
