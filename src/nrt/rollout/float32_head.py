"""Head of a model in lower precision that returns float32 logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def float32_logits(model: Any) -> Iterator[None]:
    """Context in which the head of a Hugging Face causal LM returns float32 logits.

    bfloat16 has 8 significant bits, so logits of about 16 would be rounded to multiples of 1/8. The
    trainer's scorers accumulate logits in float32, and the log-probabilities of sampler and trainer
    differ less if both do. Scale and softcap, which the model applies to the logits, are then
    computed in float32 too.

    No effect on float32 models, and on heads that are no plain `Linear`.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        yield
        return

    def forward(input: Tensor) -> Tensor:
        logits = _matmul(input.flatten(0, -2), head.weight.T)
        if head.bias is not None:
            logits += head.bias
        return logits.view(*input.shape[:-1], -1)

    head.forward = forward  # on the instance: hooks of the module still run
    try:
        yield
    finally:
        del head.forward


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32 for matrices of lower precision.

    Only CUDA has such a product. Elsewhere a second one computes what the first rounded away: it
    accumulates in float32, from the rounded result on. This takes half of the time that float32
    takes on a CPU with bfloat16 instructions, and no copy of the weights.
    """
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    rounded = a @ b
    return rounded.float().add_(torch.addmm(-rounded, a, b))
