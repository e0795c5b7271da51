"""The optimisers by name: torch's AdamW, or bitsandbytes' with its state in 8 bits (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from nrt.config import OptimizerConfig
from nrt.errors import InputError


def make_optimizer(config: OptimizerConfig, masters: Sequence[Tensor]) -> Optimizer:
    """An optimiser of float32 parameters. Raises InputError where bitsandbytes is needed and not installed, or a state in pages is
    asked for without a GPU."""
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    device = masters[0].device.type
    if config.name == "adamw":
        return AdamW(masters, **settings, fused=device in ("cpu", "cuda"))  # no temporaries of the parameters' size
    if config.name == "paged-adamw-8bit" and device != "cuda":
        raise InputError("optimizer.name=paged-adamw-8bit moves its state between a GPU and memory; set adamw-8bit or adamw here")
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise InputError(f"optimizer.name={config.name} needs bitsandbytes ({error}): pip install 'native-reasoning[lora]'") from None
    kind = PagedAdamW8bit if config.name == "paged-adamw-8bit" else AdamW8bit
    return kind(masters, **settings)


def make_schedule(config: OptimizerConfig, optimizer: Optimizer, updates: int) -> LRScheduler:
    """Learning rate over `updates` updates: n of warm-up, the first at lr/n and the last at lr, then the schedule by name."""
    warmup = int(config.warmup * updates if config.warmup < 1 else config.warmup)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    theirs: Any = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
    factor: Callable[[int], float] = theirs.lr_lambdas[0]

    def from_the_first_update(step: int) -> float:
        # transformers warms up from 0: the first update, and the whole rollout before it, would move nothing
        return factor(step + 1) if step < warmup else factor(step)

    return LambdaLR(optimizer, from_the_first_update)


def state_bytes(n: int, name: str) -> int:
    """Of `n` parameters: two moments, float32 or 8 bits with a scale for each 256 numbers, and a count of updates. Small tensors stay in
    float32."""
    return 8 * n + 4 if name == "adamw" or n < 4096 else 2 * n + 8 * -(-n // 256)
