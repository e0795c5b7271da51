"""`python -m benchmarks.soak [--quick]`: 2,000 steps of the miniature in one process: does memory grow, do steps get slower?

The recipe with 2 prompts × 4 traces a step (minutes instead of hours; the same code), an evaluation and a checkpoint every 100 steps, and
a learning rate of 1e-6, so that traces keep their length and a step its work. After each step: the resident memory, open file
descriptors, the step's processor seconds; every 50 steps all tensors that Python knows.

Slopes by least squares over what follows the first 400 steps, with the upper end of their 95 % interval from a bootstrap of the residuals
in blocks of 50 steps, since neighbours are alike.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Bar, finish, resident
from nrt.config import load_config
from nrt.lab.settings import prepare
from nrt.training import train
from nrt.training.loop import Silent

KIB = 2**10
BLOCK = 50
CHANGES = ("batch=2", "traces=4", "optimizer.lr=1e-6", "eval_every=100", "save_every=100", "heldout.rows=32", "log_traces=2")


class Meter(Silent):
    """Reads this process after each step."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self.seconds: list[float] = []  # of the processor: others on the machine cost less
        self.tensors: list[int] = []
        self.last = time.process_time()

    def step(self, metrics: Mapping[str, float]) -> None:
        step = metrics["step"]
        if step == 0:
            self.last = time.process_time()
            return
        self.seconds.append(time.process_time() - self.last)
        self.memory.append(resident())
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        if step % BLOCK == 0:
            gc.collect()
            self.tensors.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
        self.last = time.process_time()


def slope(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """(per step, lower and upper end of its 95 % interval)."""
    y = np.asarray(values, dtype=float)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    found = float(x @ y / (x @ x))
    residuals = y - y.mean() - found * x
    rng = np.random.default_rng(0)
    count = -(-len(y) // BLOCK)
    starts = rng.integers(0, len(y) - BLOCK + 1, (draws, count))
    drawn = residuals[(starts[..., None] + np.arange(BLOCK)).reshape(draws, -1)[:, : len(y)]]
    low, high = np.percentile(found + drawn @ x / (x @ x), [2.5, 97.5])
    return found, float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300 steps, of which the first 100 warm up; not written")
    quick = parser.parse_args().quick
    steps, warm = (300, 100) if quick else (2000, 400)
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("miniature", [*prepare("miniature", 0), f"run={Path(folder) / 'run'}", f"steps={steps}", *CHANGES])
        train(config, listener=meter)
    # a step with an evaluation or a checkpoint has more to do
    plain = [i for i in range(warm, steps) if i % 100 not in (0, 99)]
    seconds = [meter.seconds[i] for i in plain]
    memory, pace = slope(meter.memory[warm:]), slope(seconds)
    drift = [100 * value * len(seconds) / float(np.mean(seconds)) for value in pace]
    later = meter.tensors[warm // BLOCK :]
    figures: dict[str, Any] = {
        "steps": steps,
        "warm_up": warm,
        "changes": CHANGES,
        "resident_mib": {str(step): round(meter.memory[step - 1] / 2**20, 2) for step in range(steps // 20, steps + 1, steps // 20)},
        "memory_slope_bytes_a_step": {"slope": memory[0], "low": memory[1], "high": memory[2]},
        "processor_seconds_a_step": {"mean": float(np.mean(seconds)), "drift_percent": drift[0], "low": drift[1], "high": drift[2]},
        "tensors": meter.tensors,
        "descriptors": sorted(set(meter.descriptors[warm:])),
    }
    print(f"resident memory {meter.memory[warm] / 2**20:.1f} MiB after {warm} steps, {meter.memory[-1] / 2**20:.1f} MiB after {steps}")
    bars = [
        Bar("slope of resident memory, KiB a step, upper 95 % bound", memory[2] / KIB, 4.0),
        Bar("drift of a step's processor time over the run, per cent", drift[0], 5.0),
        Bar("tensors, last less first after the warm-up", later[-1] - later[0], 0),
        Bar("file descriptors, last less first after the warm-up", meter.descriptors[-1] - meter.descriptors[warm], 0),
    ]
    finish("soak", figures, bars, quick=quick)


if __name__ == "__main__":
    main()
