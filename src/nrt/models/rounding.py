"""How far two computations of a model's log-probabilities are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def difference(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    """Return by how many nats two scorers of a model of this dtype differ.

    In float32 that is their largest difference. Kernels round differently in bfloat16, and single
    log-probabilities differ by tenths of a nat: the mean counts, or a tenth of the largest.
    """
    differences = (a - b).abs()
    if dtype == torch.float32:
        return differences.max().item()
    return torch.maximum(differences.mean(), differences.max() / 10).item()
