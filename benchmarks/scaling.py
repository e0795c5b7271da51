"""`python -m benchmarks.scaling [--quick]`: how an update's and a rollout's time grow with K, prompts, prompt and answer length.

Exponents of a straight line through log time over log size; 1 is proportional. 3 M Llama, 8 × 8 of 64/128/64 where nothing else is said.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import Bar, Shape, draw, finish, llama, make_learner, seconds
from benchmarks.scoring import backward, rows_of

SIZES = {
    "traces": (4, 8, 16, 32),
    "prompts": (4, 8, 16, 32),
    "prompt": (64, 128, 256, 512),
    "answer": (32, 64, 128, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two sizes each, traces of 32; not written"
    )
    arguments = parser.parse_args()
    base = Shape(trace=32, answer=32) if arguments.quick else Shape()
    figures: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        sizes = sizes[:2] if arguments.quick else sizes
        times = [measure(replace(base, **{name: size})) for size in sizes]
        exponents = {
            phase: slope(sizes, [time[phase] for time in times]) for phase in ("update", "rollout")
        }
        figures[name] = {"sizes": sizes, "seconds": times, "exponents": exponents}
        print(
            f"{name}: update ∝ size^{exponents['update']:.2f}, rollout ∝ size^{exponents['rollout']:.2f}",
            flush=True,
        )
    bars = [
        Bar(f"exponent of the update in {name}", figures[name]["exponents"]["update"], 1.05)
        for name in ("traces", "prompts")
    ]
    finish("scaling-3m", figures, bars, quick=arguments.quick)


def measure(shape: Shape) -> dict[str, float]:
    """Least seconds of three."""
    learner, pairs = (
        make_learner(llama("3m"), shape, initial_reference=False),
        draw(shape)(0, shape.prompts),
    )
    rows, engine = rows_of(shape), learner.policy.engine
    work = {
        "update": lambda: backward(engine.scorer, engine.model, rows, 4096),
        "rollout": lambda: learner.policy.traces(pairs, shape.traces, seed=0),
    }
    torch.manual_seed(0)
    return {name: min(seconds(run) for _ in range(3)) for name, run in work.items()}


def slope(sizes: tuple[int, ...], times: list[float]) -> float:
    return float(
        np.polyfit([math.log(size) for size in sizes], [math.log(time) for time in times], 1)[0]
    )


if __name__ == "__main__":
    main()
