"""`python -m benchmarks.scoring [--model 3m|30m] [--pairs N] [--quick]`: forward and backward of rows against the padded oracle, and what
is left.

The oracle sorts rows by length and takes SDPA; each side has the best of three micro-batches. Then, for 8 × 8 rows of 64/128/64: the
share of an update's time in matrix products and attention, and the arithmetic limit, floating-point operations counted over the rate at
which this machine multiplies the model's own matrices.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import (
    SIZES,
    VOCABULARY,
    Bar,
    Shape,
    draw,
    finish,
    interleave,
    llama,
    make_learner,
    say,
    seconds,
)
from nrt.scoring import PaddedScorer, Scorer
from nrt.types import Role, Row

SHAPES = (Shape(), Shape(prompt=512), Shape(prompts=2, prompt=1000, trace=300, answer=200))
KERNELS = (
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "scaled_dot_product",
    "flash",
    "flex_attention",
    "gemm",
    "cutlass",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="3m")
    parser.add_argument(
        "--pairs",
        type=int,
        default=5,
        help="of each shape; 0: only the limit and the share of kernels",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one pair of the first shape; not written"
    )
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    bars = []
    pairs = min(1, arguments.pairs) if arguments.quick else arguments.pairs
    for shape in SHAPES[: 1 if arguments.quick else None] if pairs else ():
        record = against_oracle(arguments.model, shape, pairs)
        say(
            f"update's forward and backward, {arguments.model}, {shape}", record, "packed", "padded"
        )
        figures[str(shape)] = record
        if shape.prompt == 1000:
            bars.append(
                Bar(f"update over the oracle's, {arguments.model}, {shape}", record["ratio"], 0.5)
            )
    for name, compiled in (("limit", False), ("limit_compiled", True)):
        figures[name] = limit(arguments.model, Shape(), compiled)
        print(f"{name}: {figures[name]}")
    if arguments.model == "30m":
        bars.append(
            Bar(
                "matmul and attention in an update, share",
                figures["limit"]["kernel_share"],
                0.8,
                at_least=True,
            )
        )
    finish(f"scoring-{arguments.model}", figures, bars, quick=arguments.quick)


def rows_of(shape: Shape) -> list[Row]:
    """Each prompt's K traces with its answer, as an update forwards them; random traces of half to all of `shape.trace` tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for pair in draw(shape)(0, shape.prompts):
        for _ in range(shape.traces):
            trace = torch.randint(5, VOCABULARY, (shape.trace,), generator=generator).tolist()
            roles = (
                Role.START,
                *[Role.TRACE] * len(trace),
                Role.END,
                *[Role.ANSWER] * shape.answer,
            )
            rows.append(Row(pair.prompt_ids, (1, *trace, 2, *pair.answer_ids), roles, True))
    return rows


def backward(scorer: Scorer, model: Any, rows: Sequence[Row], tokens: int) -> None:
    for batch in scorer.batches(rows, tokens):
        scorer(model, [rows[i] for i in batch]).logp_N.sum().backward()


def against_oracle(size: str, shape: Shape, pairs: int) -> dict[str, Any]:
    rows = rows_of(shape)
    packed, padded = (
        make_learner(llama(size), shape, initial_reference=False).policy.engine,
        llama(size),
    )
    oracle = PaddedScorer(0)
    best = {}
    for name, scorer, model in (
        ("packed", packed.scorer, packed.model),
        ("padded", oracle, padded),
    ):
        times = {
            tokens: seconds(lambda s=scorer, m=model, t=tokens: backward(s, m, rows, t))
            for tokens in (4096, 8192, 16384)
        }
        best[name] = min(times, key=lambda tokens: times[tokens])
    timings = interleave(
        lambda: backward(packed.scorer, packed.model, rows, best["packed"]),
        lambda: backward(oracle, padded, rows, best["padded"]),
        pairs,
    )
    return timings.record("packed", "padded") | {"tokens_per_batch": best}


def limit(size: str, shape: Shape, compiled: bool) -> dict[str, float]:
    """Seconds of an update's forward and backward, least seconds by arithmetic, and the share of time in kernels."""
    rows = rows_of(shape)
    engine = make_learner(
        llama(size), shape, initial_reference=False, compile_layers=compiled
    ).policy.engine

    def update() -> None:
        with engine.compiled.layers_of(engine.model):
            backward(engine.scorer, engine.model, rows, 4096)

    update()
    took = min(seconds(update) for _ in range(3))
    with profile(
        activities=[
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
        ]
    ) as profiler:
        whole = seconds(update)
    spent = (
        sum(
            _self_time(event)
            for event in profiler.key_averages()
            if any(kernel in event.key for kernel in KERNELS)
        )
        / 1e6
    )
    flops = update_flops(size, shape)
    rate = multiplication_rate(size)
    return {
        "seconds": took,
        "flops": flops,
        "flops_per_second_of_matmul": rate,
        "least_seconds": flops / rate,
        "of_limit": flops / rate / took,
        "kernel_share": spent / whole,
    }


def update_flops(size: str, shape: Shape) -> float:
    """Forward and twice as much backward: two a weight and token, four a width and pair of tokens that attend, and the head again in
    the backward."""
    layers, width = SIZES[size]
    hidden = width * 8 // 3 // 16 * 16
    tail = shape.trace + 1 + shape.answer
    tokens = shape.prompts * (shape.prompt + shape.traces * tail)
    seen = shape.prompts * (
        shape.prompt**2 / 2 + shape.traces * (tail * shape.prompt + tail**2 / 2)
    )
    predicted = shape.prompts * shape.traces * (tail + 1)
    per_token = 2 * layers * (4 * width**2 + 3 * width * hidden)
    return (
        3 * (tokens * per_token + 4 * layers * width * seen)
        + 4 * predicted * 2 * width * VOCABULARY
    )


def multiplication_rate(size: str) -> float:
    """FLOP/s of the largest matrices of the model's forward and backward."""
    width = SIZES[size][1]
    hidden = width * 8 // 3 // 16 * 16
    a, b = torch.randn(2048, width), torch.randn(hidden, width)
    c = torch.randn(2048, hidden)

    def products() -> None:
        for _ in range(10):
            torch.mm(a, b.T)  # forward
            torch.mm(c, b)  # the input's gradient
            torch.mm(c.T, a)  # the weight's

    products()
    return 10 * 3 * 2 * 2048 * width * hidden / min(seconds(products) for _ in range(3))


def _self_time(event: Any) -> float:
    return event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total


if __name__ == "__main__":
    main()
