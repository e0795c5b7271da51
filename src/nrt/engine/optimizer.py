"""Optimizers by name: torch's AdamW, or bitsandbytes' with an 8-bit state (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nrt.config import OptimizerConfig
from nrt.errors import InputError, install_hint


def make_optimizer(config: OptimizerConfig, masters: Sequence[Tensor]) -> Optimizer:
    """Return the optimizer of float32 parameters.

    Raises InputError if bitsandbytes is needed and not installed, or if a paged state is configured
    without a GPU.
    """
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    device = masters[0].device.type
    if not config.is_8_bit:
        # fused: without temporary tensors as large as the parameters
        return AdamW(masters, **settings, fused=device in ("cpu", "cuda"))
    if config.name == "paged-adamw-8bit" and device != "cuda":
        raise InputError(
            "optimizer.name=paged-adamw-8bit moves its state between a GPU and memory, and this "
            "run uses no CUDA GPU; set adamw-8bit or adamw"
        )
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise InputError(
            f"optimizer.name={config.name} needs bitsandbytes ({error}); {install_hint('lora')}"
        ) from None
    optimizer_class = PagedAdamW8bit if config.name == "paged-adamw-8bit" else AdamW8bit
    return optimizer_class(masters, **settings)


def warmup_updates(config: OptimizerConfig, updates: int) -> int:
    """Return the updates of the warm-up; `warmup` below 1 is a share of all `updates`."""
    return int(config.warmup * updates if config.warmup < 1 else config.warmup)


def make_schedule(config: OptimizerConfig, optimizer: Optimizer, updates: int) -> LambdaLR:
    """Return the learning-rate schedule over `updates` updates.

    Warm-up takes n updates, the first at lr/n and the last at lr. The schedule by name follows.
    """
    from transformers import get_scheduler  # imports peft and bitsandbytes: two seconds

    warmup = warmup_updates(config, updates)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule: Any = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=updates
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]

    def shifted_factor(step: int) -> float:
        # transformers warms up from 0: the first update, and the whole rollout before it, would
        # change no weight
        return factor(step + 1) if step < warmup else factor(step)

    return LambdaLR(optimizer, shifted_factor)


def state_bytes(n: int, name: str) -> int:
    """Return the bytes of the optimizer's state for `n` parameters.

    The state is two moments and a count of updates. An 8-bit moment has a scale for each 256
    numbers; bitsandbytes keeps tensors below 4,096 numbers in float32.
    """
    if name == "adamw" or n < 4096:
        return 8 * n + 4
    return 2 * n + 8 * -(-n // 256)
