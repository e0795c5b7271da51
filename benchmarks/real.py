"""`python -m benchmarks.real [--pairs 3] [--threads 2] [--no-trl]`: a step of a real model, prompts shared against rows padded, and TRL's.

SmolLM2-135M-Instruct in float32, 8 prompts of about 110 tokens × 16 traces of at most 24 and answers of 7. nrt with shared prompts
and nrt with padded rows (the oracle) take turns. Then comes TRL's GRPOTrainer on the same model and prompts, with completions as long
as trace and answer together. The model is fetched if need be; `pip install -e '.[bench]'` brings TRL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Bar, finish, interleave, say
from nrt.config import build_config
from nrt.engine.samplers import ShardedSampler
from nrt.lab.arithmetic import FAMILIES, draw_problems, messages, worked_examples
from nrt.models import load_model
from nrt.rollout import HFSampler
from nrt.scoring import PaddedScorer
from nrt.trainer.progress import Progress
from nrt.trainer.setup import Parts, prepare
from nrt.trainer.step import train_step
from tests.real.model import smollm2

BAR = 0.35
TRL_STEPS = 2  # six minutes each
PROMPTS, TRACES, TRACE, ANSWER = 8, 16, 24, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-trl", action="store_true", help="only nrt against itself")
    parser.add_argument("--quick", action="store_true", help="one pair; not written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = 1 if arguments.quick else arguments.pairs
    with tempfile.TemporaryDirectory() as folder:
        shared, padded = (
            parts_of(Path(folder), arguments.threads),
            parts_of(Path(folder), arguments.threads),
        )
        engine, sampler = padded.learner.policy.engine, padded.learner.policy.sampler
        engine.scorer = PaddedScorer(0)
        assert isinstance(sampler, ShardedSampler)
        assert isinstance(sampler.sampler, HFSampler)
        own = replace(sampler, sampler=replace(sampler.sampler, share=False))
        padded = replace(padded, learner=with_sampler(padded.learner, own))
        timings = interleave(Steps("shared", shared), Steps("padded", padded), pairs)
        record = timings.record("shared", "padded")
        say(f"SmolLM2-135M, {PROMPTS}×{TRACES}, traces of {TRACE}", record, "shared", "padded")
        if not arguments.no_trl:
            record["trl_seconds"] = statistics.median(trl_seconds(Path(folder), TRL_STEPS))
            record["ratio_to_trl"] = record["shared_seconds"] / record["trl_seconds"]
            print(
                f"TRL {record['trl_seconds']:.1f} s a step; nrt's is {record['ratio_to_trl']:.2f} of it"
            )
    finish(
        "real",
        record | {"threads": arguments.threads},
        [Bar("shared step over the padded one", record["ratio"], BAR)],
        quick=arguments.quick,
    )


def questions(count: int) -> list[list[dict[str, str]]]:
    """Additions with two worked examples before each, as turns that end with the answer."""
    problems = draw_problems(FAMILIES["add2"], test=False, n=count, seed=0)
    examples = worked_examples([FAMILIES["count3"], FAMILIES["add2"]])
    return [messages(problem, examples) for problem in problems]


def parts_of(folder: Path, threads: int) -> Parts:
    """A run of nrt that is ready to step."""
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in questions(64)))
    values = {
        "model": str(smollm2()), "data": {"train": str(file)}, "batch": PROMPTS, "traces": TRACES, "max_trace_tokens": TRACE,
        "max_answer_tokens": 16, "max_prompt_tokens": 256, "steps": 100, "profile": "paper", "threads": threads, "device": "cpu",
        "initial_reference": False,
    }  # fmt: skip
    return prepare(build_config(values))


def with_sampler(learner: Any, sampler: Any) -> Any:
    """The learner whose policy samples with it."""
    return replace(learner, policy=replace(learner.policy, sampler=sampler))


class Steps:
    """One step after the other."""

    def __init__(self, name: str, parts: Parts) -> None:
        self.name, self.parts, self.done = name, parts, 0

    def __call__(self) -> None:
        begin, started = self.done * PROMPTS, time.perf_counter()
        train_step(
            self.parts.learner,
            Progress(),
            lambda offset, n: self.parts.draw(begin + offset, n),
            seed=self.done,
        )
        self.done += 1
        print(f"{self.name}, step {self.done}: {time.perf_counter() - started:.1f} s", flush=True)


def trl_seconds(folder: Path, steps: int) -> list[float]:
    """Return the seconds of TRL's steps, the first left out: completions as long as trace and answer, no reference model, one update
    a rollout. It forwards the rows of one prompt at a time: all at once take more than 23 GB.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    class Clock(TrainerCallback):
        ended, taken = 0.0, []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            if state.global_step > 1:
                self.taken.append(now - self.ended)
            self.ended = now

    completion = TRACE + ANSWER
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=steps + 1, per_device_train_batch_size=TRACES, gradient_accumulation_steps=PROMPTS, num_generations=TRACES,
        max_completion_length=completion, generation_kwargs={"min_new_tokens": completion}, gradient_checkpointing=False,
        learning_rate=1e-5, bf16=False, use_cpu=True, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model, tokenizer = load_model(str(smollm2()), dtype=torch.float32, device="cpu")
    clock = Clock()
    prompts = [turns[:-1] for turns in questions(PROMPTS * (steps + 1))]
    GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [
            float(len(str(text)) % 7) for text in completions
        ],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    return clock.taken


if __name__ == "__main__":
    main()
