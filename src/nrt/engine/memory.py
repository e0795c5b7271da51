"""How many tokens a forward and backward may take on a CPU. There, too many do not raise an error: the system ends the process."""

from __future__ import annotations

from typing import Any

import torch

from nrt.config import AUTO_TOKENS
from nrt.environment import machine_memory

SHARE = 4
"""One part in so many of the machine's memory is for what a backward needs; weights, optimiser and all else have the rest."""

FEWEST = 1024
"""Tokens: with fewer, each pass does little more than read the weights."""


def auto_tokens(model: Any, device: torch.device, *, recompute: bool = False) -> int:
    """tokens_per_batch=auto: AUTO_TOKENS, or on a CPU as many as fit; the same on the same machine, whatever else runs there.

    A layer of the Llama family keeps 12 hidden and 3 intermediate vectors a token for its backward (measured on SmolLM2-135M: 11,500
    numbers a layer, 1.4 MB a token in all); a third is added for other families.
    """
    if device.type != "cpu":
        return AUTO_TOKENS
    config = model.config.get_text_config()
    layers, hidden = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if not layers or not hidden:
        return AUTO_TOKENS
    wide = getattr(config, "intermediate_size", None)
    layer = 16 * hidden + 4 * (wide if isinstance(wide, int) else 4 * hidden)
    numbers = layers * hidden + layer if recompute else layers * layer
    bytes_each = max(4, torch.finfo(model.dtype).bits // 8)
    most = machine_memory() // SHARE // (numbers * bytes_each)
    return max(FEWEST, min(AUTO_TOKENS, most // 256 * 256))
