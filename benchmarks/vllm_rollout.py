"""`python -m benchmarks.vllm_rollout [--model 3m|30m] [--quick]`: what nrt adds to vLLM's own generate, in this process and through a
rollout server, and what a push of the weights costs. In an environment that has vLLM (`make test-vllm`'s).

128 traces: 16 prompts of 64 tokens × 8, 128 new ones, temperature 1, no token that ends a trace. Each sampling is timed as a whole and
inside `LLM.generate`, so that what else the machine does falls on both; the cache of prompts is emptied before, as after each update.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import Bar, Shape, draw, finish, llama, seconds
from nrt.models import save_config
from nrt.rollout import RemoteSampler, Request, Sampler
from nrt.rollout.server import RolloutServer
from nrt.rollout.vllm import VLLMSampler

BAR = 1.03


class Timed:
    """Seconds of each call of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = self.function(*arguments, **options)
        self.seconds.append(time.perf_counter() - began)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="30m")
    parser.add_argument(
        "--quick", action="store_true", help="one sampling, a quarter of the tokens; not written"
    )
    arguments = parser.parse_args()
    shape = Shape(prompts=16, trace=32 if arguments.quick else 128)
    times = 1 if arguments.quick else 5
    model = llama(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        save_config(model, folder)
        vllm = VLLMSampler(
            folder, dtype="float32", context=shape.prompt + shape.trace, dummy=True, memory=0.05
        )
    weights = list(model.named_parameters())
    request = Request(
        [pair.prompt_ids for pair in draw(shape)(0, shape.prompts)],
        shape.traces,
        frozenset(),
        shape.trace,
        seed=0,
    )
    vllm.llm.generate = generate = Timed(vllm.llm.generate)

    def measure(sampler: Sampler) -> dict[str, Any]:
        pushes = [seconds(lambda: sampler.load_weights(weights)) for _ in range(times + 1)]
        whole = []
        for _ in range(times + 1):  # the first is not counted
            vllm.llm.reset_prefix_cache()
            whole.append(seconds(lambda: sampler.sample(request)))
        ratios = [a / b for a, b in zip(whole[1:], generate.seconds[-times:], strict=True)]
        return {
            "nrt_seconds": statistics.median(whole[1:]),
            "generate_seconds": statistics.median(generate.seconds[-times:]),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "samplings": times,
            "push_seconds": statistics.median(pushes[1:]),
        }

    record = {"in_process": measure(vllm)}
    with RolloutServer(vllm, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        record["server"] = measure(RemoteSampler([server.base_url]))
        server.shutdown()
    for name, r in record.items():
        spread = f"{r['ratio_least']:.4f} to {r['ratio_most']:.4f}"
        print(
            f"{arguments.model}, {shape}, {name}: {r['nrt_seconds']:.3f} s, of which generate {r['generate_seconds']:.3f} s ({spread})"
        )
        print(f"  a push: {r['push_seconds']:.3f} s")
    bars = [
        Bar(f"over vLLM's generate, {arguments.model}, {name}", r["ratio"], BAR)
        for name, r in record.items()
    ]
    finish(f"vllm-rollout-{arguments.model}", record, bars, quick=arguments.quick)


if __name__ == "__main__":
    main()
