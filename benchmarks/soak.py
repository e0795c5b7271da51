"""`python -m benchmarks.soak [--quick]`: 2,000 steps of the miniature in one process: does memory grow, do steps get slower?

The recipe with 2 prompts × 4 traces a step (minutes instead of hours; the same code), an evaluation and a checkpoint every 100 steps, and
a learning rate of 1e-8, so that traces keep their length and a step its work. After each step: the resident memory, open file
descriptors, and the processor seconds of the step over those of a fixed forward and backward right after it, which slows down as much
when others use the machine; every 50 steps all tensors that Python knows.

Slopes by least squares over what follows the first 400 steps, with the ends of their 95 % interval from a bootstrap of the residuals in
blocks of 100 steps: memory keeps its level from one evaluation to the next.
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
from nrt.lab.settings import prepare_miniature
from nrt.models import load_model
from nrt.trainer import train
from nrt.trainer.listener import NullListener

KIB = 2**10
EVERY = 100
COUNTED = 50
CHANGES = (
    "batch=2",
    "traces=4",
    "optimizer.lr=1e-8",
    f"eval_every={EVERY}",
    f"save_every={EVERY}",
    "heldout.rows=32",
    "log_traces=2",
)


class Meter(NullListener):
    """Reads this process after each step."""

    def __init__(self, model: Any) -> None:
        self.model, self.ids = model, torch.arange(4 * 48).reshape(4, 48) % 32
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self.seconds: list[float] = []  # of the processor
        self.paces: list[float] = []  # the same, over those of the fixed work
        self.tensors: list[int] = []
        self.last = 0.0

    def step(self, metrics: Mapping[str, float]) -> None:
        seconds = time.process_time() - self.last
        if step := int(metrics["step"]):
            self.seconds.append(seconds)
            self.paces.append(seconds / self._fixed_work())
            self.memory.append(resident())
            self.descriptors.append(len(os.listdir("/proc/self/fd")))
            if step % COUNTED == 0:
                gc.collect()
                self.tensors.append(
                    sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
                )
        self.last = time.process_time()

    def _fixed_work(self) -> float:
        began = time.process_time()
        self.model(input_ids=self.ids, labels=self.ids).loss.backward()
        self.model.zero_grad()
        return time.process_time() - began


def slope(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """(per step, lower and upper end of its 95 % interval)."""
    y = np.asarray(values, dtype=float)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    found = float(x @ y / (x @ x))
    residuals = y - y.mean() - found * x
    rng = np.random.default_rng(0)
    count = -(-len(y) // EVERY)
    starts = rng.integers(0, len(y) - EVERY + 1, (draws, count))
    drawn = residuals[(starts[..., None] + np.arange(EVERY)).reshape(draws, -1)[:, : len(y)]]
    low, high = np.percentile(found + drawn @ x / (x @ x), [2.5, 97.5])
    return found, float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="300 steps, of which the first 100 warm up; not written",
    )
    quick = parser.parse_args().quick
    steps, warm = (300, 100) if quick else (2000, 400)
    given = prepare_miniature("miniature", 0)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "miniature", [*given, f"run={Path(folder) / 'run'}", f"steps={steps}", *CHANGES]
        )
        meter = Meter(load_model(str(config.model), dtype=torch.float32, device="cpu")[0])
        train(config, listener=meter)
    # a step with an evaluation or a checkpoint has more to do, and the next one hears of it
    plain = [i for i in range(warm, steps) if i % EVERY not in (0, EVERY - 1)]
    memory, pace = slope(meter.memory[warm:]), slope([meter.paces[i] for i in plain])
    drift = [
        100 * value * len(plain) / float(np.mean([meter.paces[i] for i in plain])) for value in pace
    ]
    later = meter.tensors[warm // COUNTED :]
    figures: dict[str, Any] = {
        "steps": steps,
        "warm_up": warm,
        "changes": CHANGES,
        "resident_mib_means_of_20_steps": [
            round(float(mean), 2) for mean in np.reshape(meter.memory, (-1, 20)).mean(1) / 2**20
        ],
        "memory_slope_bytes_a_step": {"slope": memory[0], "low": memory[1], "high": memory[2]},
        "processor_seconds_a_step": float(np.mean([meter.seconds[i] for i in plain])),
        "step_time_drift_percent": {"drift": drift[0], "low": drift[1], "high": drift[2]},
        "paces_medians_of_20_steps": [
            round(float(median), 3) for median in np.median(np.reshape(meter.paces, (-1, 20)), 1)
        ],
        "tensors": meter.tensors,
        "descriptors": sorted(set(meter.descriptors[warm:])),
    }
    print(
        f"resident memory {meter.memory[warm] / 2**20:.1f} MiB after {warm} steps, {meter.memory[-1] / 2**20:.1f} MiB after {steps}"
    )
    bars = [
        Bar("slope of resident memory, KiB a step, upper 95 % bound", memory[2] / KIB, 4.0),
        Bar("drift of a step's time over the run, per cent, either way", abs(drift[0]), 5.0),
        Bar("tensors, last less first after the warm-up", later[-1] - later[0], 0),
        Bar(
            "file descriptors, last less first after the warm-up",
            meter.descriptors[-1] - meter.descriptors[warm],
            0,
        ),
    ]
    finish("soak", figures, bars, quick=quick)


if __name__ == "__main__":
    main()
