"""`python -m benchmarks.mfu [--tiny]`: how much of a GPU's arithmetic an update uses, and a rollout's tokens a second.

Random weights of Llama-3.2-3B's shape in bfloat16 with float32 masters, rows of 4,096 tokens: one prompt of 512 and eight tails of 448.
Counted: six floating-point operations a weight and token, twelve a width and pair of tokens that attend; recomputation does not count. Over
the peak that the vendor states for dense bfloat16. `--tiny` runs the same code with a small model, on anything.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import Bar, Shape, draw, finish, make_learner, seconds
from benchmarks.memory import update
from benchmarks.scoring import rows_of

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s, dense bfloat16, SXM."""
SHAPE = Shape(prompts=4, traces=8, prompt=512, trace=320, answer=126)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="64 wide, 2 layers; not written")
    arguments = parser.parse_args()
    config = LlamaConfig(
        vocab_size=1000 if arguments.tiny else 128_256,
        hidden_size=64 if arguments.tiny else 3072,
        intermediate_size=128 if arguments.tiny else 8192,
        num_hidden_layers=2 if arguments.tiny else 28,
        num_attention_heads=4 if arguments.tiny else 24,
        num_key_value_heads=2 if arguments.tiny else 8,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(config).bfloat16().eval()
    learner, rows = (
        make_learner(model, SHAPE, tokens_per_batch=4096, initial_reference=False),
        rows_of(SHAPE),
    )
    assert all(
        len(batch) == SHAPE.traces for batch in learner.policy.engine.scorer.batches(rows, 4096)
    )
    for _ in range(2):
        update(learner, rows)
    took = statistics.median(seconds(lambda: update(learner, rows)) for _ in range(5))
    pairs = draw(SHAPE)(0, SHAPE.prompts)
    rollout = seconds(lambda: learner.policy.traces(pairs, SHAPE.traces, seed=0))
    flops = counted(config, model.num_parameters())
    peak = next(
        (
            rate
            for name, rate in PEAKS.items()
            if device.type == "cuda" and name in torch.cuda.get_device_name()
        ),
        1e11,
    )
    figures = {
        "update_seconds": took,
        "flops": flops,
        "peak_flops_per_second": peak,
        "utilisation": flops / took / peak,
        "rollout_tokens_per_second": SHAPE.prompts * SHAPE.traces * SHAPE.trace / rollout,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }
    print(figures)
    finish(
        "mfu",
        figures,
        [Bar("utilisation of the update", figures["utilisation"], 0.45, at_least=True)],
        quick=arguments.tiny,
    )


def counted(config: LlamaConfig, parameters: int) -> float:
    """Floating-point operations of forward and backward; tied embeddings count once, as the head."""
    tail = SHAPE.trace + 1 + SHAPE.answer
    tokens = SHAPE.prompts * (SHAPE.prompt + SHAPE.traces * tail)
    seen = SHAPE.prompts * (
        SHAPE.prompt**2 / 2 + SHAPE.traces * (tail * SHAPE.prompt + tail**2 / 2)
    )
    return 6 * parameters * tokens + 12 * config.num_hidden_layers * config.hidden_size * seen


if __name__ == "__main__":
    main()
