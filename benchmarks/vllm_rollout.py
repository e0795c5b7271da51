"""`python -m benchmarks.vllm_rollout [--model 3m|30m] [--quick]`: what nrt adds to vLLM's own generate, in turns on one engine; then what a
rollout server adds; and what a push of the weights costs, in memory and over HTTP. In an environment that has vLLM (`make test-vllm`'s).

128 traces: 16 prompts of 64 tokens × 8, 128 new ones, temperature 1, no token that ends a trace. Both sides get the same sampling
parameters and log-probabilities, and the cache of prompts is emptied before each sampling, as it is after each update.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from typing import Any

from benchmarks.common import Bar, Shape, draw, finish, interleave, llama, say, seconds
from nrt.models import save_config
from nrt.rollout import RemoteSampler, Request
from nrt.rollout.server import RolloutServer
from nrt.rollout.vllm import VLLMSampler, params_of

BAR = 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="30m")
    parser.add_argument("--quick", action="store_true", help="one pair, a quarter of the tokens; not written")
    arguments = parser.parse_args()
    shape = Shape(prompts=16, trace=32 if arguments.quick else 128)
    pairs = 1 if arguments.quick else 7
    model = llama(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        save_config(model, folder)
        sampler = VLLMSampler(folder, dtype="float32", context=shape.prompt + shape.trace, dummy=True, memory=0.05)
    weights = list(model.named_parameters())
    pushes = [seconds(lambda: sampler.load_weights(weights)) for _ in range(6)][1:]
    request = Request([pair.prompt_ids for pair in draw(shape)(0, shape.prompts)], shape.traces, frozenset(), shape.trace, seed=0)
    prompts: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in request.prompts]
    params = [params_of(request, place) for place in range(len(prompts))]

    def generate() -> None:
        sampler.llm.reset_prefix_cache()
        sampler.llm.generate(prompts, params, use_tqdm=False)

    def ours() -> None:
        sampler.llm.reset_prefix_cache()
        sampler.sample(request)

    record: dict[str, Any] = {"push_seconds": statistics.median(pushes)}
    record["in_process"] = interleave(ours, generate, pairs).record("nrt", "vllm")
    say(f"{arguments.model}, {shape}, in process", record["in_process"], "nrt", "vllm")
    with RolloutServer(sampler, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = RemoteSampler([server.url])
        remote.load_weights(weights)

        def served() -> None:
            sampler.llm.reset_prefix_cache()
            remote.sample(request)

        record["server"] = interleave(served, generate, pairs).record("nrt", "vllm")
        say(f"{arguments.model}, {shape}, through a server", record["server"], "nrt", "vllm")
        record["server_push_seconds"] = statistics.median([seconds(lambda: remote.load_weights(weights)) for _ in range(5)])
        server.shutdown()
    print(f"a push: {record['push_seconds']:.3f} s in memory, {record['server_push_seconds']:.3f} s to a server")
    bars = [Bar(f"over vLLM's generate, {arguments.model}, {name}", record[name]["ratio"], BAR) for name in ("in_process", "server")]
    finish(f"vllm-rollout-{arguments.model}", record, bars, quick=arguments.quick)


if __name__ == "__main__":
    main()
