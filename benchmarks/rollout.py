"""`python -m benchmarks.rollout [--model 3m|30m] [--bf16] [--vllm PYTHON] [--quick]`: sampling 8 × 8 traces against `model.generate`, in
turns; then, with `--vllm`, against vLLM in the interpreter that is named.

Prompts of 64 tokens, 128 new ones, temperature 1, no token that ends a trace; the same model, one after the other. Only nrt gives the
tokens' log-probabilities too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.common import Bar, Shape, draw, finish, interleave, llama, say
from nrt.models.attention import install_attention
from nrt.rollout import HFSampler, Request

BARS = {"float32": 1 / 1.3, "bfloat16": 1 / 1.7}
"""Of nrt's seconds over generate's, at 3 M; the issue names them as speed-ups."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="3m")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vLLM")
    parser.add_argument(
        "--quick", action="store_true", help="one pair, a quarter of the tokens; not written"
    )
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    shape = Shape(trace=32 if arguments.quick else 128)
    model = llama(arguments.model, dtype=dtype)
    install_attention(model)
    prompts = [pair.prompt_ids for pair in draw(shape)(0, shape.prompts)]
    sampler = HFSampler(model, 0)
    ids = torch.tensor(prompts).repeat_interleave(shape.traces, 0)

    def ours() -> None:
        sampler.sample(
            Request(prompts, n=shape.traces, stop_ids=frozenset({10**9}), cap=shape.trace, seed=0)
        )

    @torch.no_grad()
    def generate() -> None:
        options = {
            "do_sample": True,
            "top_k": 0,
            "min_new_tokens": shape.trace,
            "max_new_tokens": shape.trace,
            "eos_token_id": None,
        }
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options
        )

    kind = str(dtype).removeprefix("torch.")

    def compare(name: str, peer: Callable[[], Any]) -> dict[str, Any]:
        record = interleave(ours, peer, 1 if arguments.quick else 7).record("nrt", name)
        tokens = shape.prompts * shape.traces * shape.trace
        record |= {
            f"{side}_tokens_per_second": tokens / record[f"{side}_seconds"]
            for side in ("nrt", name)
        }
        say(f"{arguments.model} {kind}, {shape}", record, "nrt", name)
        return record

    record = compare("generate", generate)
    if arguments.vllm:
        with vllm_peer(arguments.vllm, model, prompts, shape) as (packages, peer):
            record["vllm"] = compare("vllm", peer) | {"packages": packages}
    bar = Bar(
        f"rollout over generate, {arguments.model} {kind}", record["ratio"], round(BARS[kind], 3)
    )
    finish(f"rollout-{arguments.model}-{kind}", record, [bar], quick=arguments.quick)


@contextmanager
def vllm_peer(
    python: str, model: LlamaForCausalLM, prompts: list[tuple[int, ...]], shape: Shape
) -> Iterator[tuple[dict[str, str], Callable[[], Any]]]:
    """vLLM's versions, and what has it sample once, in a process that waits between."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        command = [
            python,
            str(Path(__file__).with_name("vllm_peer.py")),
            folder,
            str(model.dtype).removeprefix("torch."),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            questions, answers = process.stdin, process.stdout
            assert questions is not None
            assert answers is not None

            def ask(question: str) -> Any:
                print(question, file=questions, flush=True)
                return json.loads(answers.readline())

            yield (
                ask(json.dumps({"prompts": prompts, "n": shape.traces, "tokens": shape.trace})),
                lambda: ask("sample"),
            )


if __name__ == "__main__":
    main()
