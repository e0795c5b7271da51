"""`python -m benchmarks.step [--model 3m|30m] [--prompt 64|512] [--bf16] [--threads 1 2] [--compile] [--quick]`: a whole step against TRL's.

TRL 1.16's GRPOTrainer with completions of 192 tokens, nrt with traces of 128 and answers of 64: 8 prompts × 8, one on-policy update,
gradient checkpointing off on both sides, random weights of the same shape, no token that ends a completion early. TRL's own training
loop is timed, from the end of one step to the end of the next; nrt's step runs between, in the callback. TRL is given the best of a
small grid (micro-batch, threads), nrt the same threads. `pip install -e '.[bench]'` first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.common import (
    VOCABULARY,
    Bar,
    Shape,
    Timings,
    draw,
    finish,
    llama,
    make_learner,
    say,
    seconds,
    train_one,
)

BARS = {("3m", 64): 0.70, ("30m", 64): 0.72, ("3m", 512): 0.45, ("30m", 512): 0.45}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="3m")
    parser.add_argument("--prompt", type=int, choices=[64, 512], default=64)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="nrt with compile=true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[64, 16],
        help="micro-batches of TRL's grid, in completions",
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pair of the first setting, completions of 48; not written",
    )
    arguments = parser.parse_args()
    trace, answer = (32, 16) if arguments.quick else (128, 64)
    shape = Shape(prompt=arguments.prompt, trace=trace, answer=answer)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    grid = [(threads, batch) for threads in arguments.threads for batch in arguments.batches]
    tried = {}
    for threads, batch in grid[: 1 if arguments.quick else None]:
        torch.set_num_threads(threads)
        tried[threads, batch] = min(_trl_steps(arguments.model, dtype, shape, batch, 2, None).a)
        print(
            f"TRL with {threads} thread(s), {batch} completions a micro-batch: {tried[threads, batch]:.2f} s a step",
            flush=True,
        )
    (threads, batch), _ = min(tried.items(), key=lambda item: item[1])
    torch.set_num_threads(threads)
    learner = make_learner(
        llama(arguments.model, dtype=dtype), shape, compile_layers=arguments.compile
    )
    pairs = draw(shape)
    timings = _trl_steps(
        arguments.model,
        dtype,
        shape,
        batch,
        1 if arguments.quick else arguments.pairs,
        lambda i: train_one(learner, lambda offset, n: pairs(i * n + offset, n), seed=i),
        show=True,
    )
    timings.a, timings.b = timings.b, timings.a
    record = timings.record("nrt", "trl")
    kind = str(dtype).removeprefix("torch.") + ("-compiled" if arguments.compile else "")
    record |= {
        "trl_grid": {f"{t} threads, {b} completions": s for (t, b), s in tried.items()},
        "threads": threads,
        "trl_batch": batch,
    }
    say(f"{arguments.model} {kind}, {shape}, {threads} thread(s)", record, "nrt", "trl")
    bar = Bar(
        f"step over TRL's, {arguments.model} {kind}, prompts of {shape.prompt}",
        record["ratio"],
        BARS[arguments.model, shape.prompt],
    )
    finish(f"step-{arguments.model}-{shape.prompt}-{kind}", record, [bar], quick=arguments.quick)


def _trl_steps(
    size: str,
    dtype: torch.dtype,
    shape: Shape,
    batch: int,
    steps: int,
    between: Any,
    *,
    show: bool = False,
) -> Timings:
    """Seconds of TRL's steps (a) and of `between` after each (b); the first of each is not counted."""
    completion = shape.trace + shape.answer
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=shape.prompts * shape.traces // batch,
            num_generations=shape.traces,
            max_completion_length=completion,
            generation_kwargs={"min_new_tokens": completion},
            gradient_checkpointing=False,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=False,  # bfloat16: parameters themselves, as lent to the trainer; autocast would convert them at each use
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cache=True,
        )
        if show:
            print(f"GRPOConfig: {config.to_json_string()}")
        tokenizer = _tokenizer()
        texts = [
            tokenizer.decode(pair.prompt_ids)
            for pair in draw(shape)(0, shape.prompts * (steps + 1))
        ]
        clock = _Clock(between)
        GRPOTrainer(
            model=llama(size, dtype=dtype),
            reward_funcs=lambda completions, **kwargs: [
                float(hash(text) % 7) for text in completions
            ],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock.timings


class _Clock(TrainerCallback):
    def __init__(self, between: Any) -> None:
        self.timings, self._between, self._ended = Timings(), between, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first = state.global_step == 1
        if not first:
            self.timings.a.append(time.perf_counter() - self._ended)
        if self._between:
            took = seconds(lambda: self._between(state.global_step))
            if not first:
                self.timings.b.append(took)
        self._ended = time.perf_counter()


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word `t5`, `t6`, …; texts come back as the ids they were made of."""
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="t0",
        bos_token="t3",
        eos_token="t4",
        padding_side="left",
    )


if __name__ == "__main__":
    main()
