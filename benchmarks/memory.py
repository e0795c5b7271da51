"""`python -m benchmarks.memory [--quick]`: the peak of an update beyond what a run always holds.

That is beyond weights, gradients and optimizer state.

1. Prompt, trace and answer of 1000, 300 and 200 tokens, K = 8: against the padded oracle, each with
   the micro-batch of one group.
2. A vocabulary of 131,072 against one of 1,024: nothing of [tokens × vocabulary] may be there, and
   no copy of the vocabulary's matrix.

Each figure comes from a process of its own. Two updates come first, then all gradients are created,
so that gradients and optimizer state exist before the update that is measured. On a CPU the figure
is the resident memory at its highest (`common.Peak`), on a GPU what torch says was allocated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import Bar, Peak, Shape, finish, llama, make_learner
from benchmarks.scoring import backward, rows_of
from nrt.engine.weights import recomputing
from nrt.objective import RowCredit
from nrt.scoring import PaddedScorer
from nrt.trainer.learner import Learner
from nrt.types import Row, TailScores

MIB = 2**20


def main() -> None:
    """Measure the four peaks, or print one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["3m", "30m"], default="3m")
    parser.add_argument(
        "--quick", action="store_true", help="shorter rows and a vocabulary of 16,384; not written"
    )
    parser.add_argument(
        "--one",
        nargs=6,
        help="(used by the benchmark itself) scorer, vocabulary, prompts, prompt, trace, answer",
    )
    arguments = parser.parse_args()
    if arguments.one:
        scorer, vocabulary, prompts, prompt, trace, answer = arguments.one
        shape = Shape(
            prompts=int(prompts), prompt=int(prompt), trace=int(trace), answer=int(answer)
        )
        print(peak(arguments.model, scorer, int(vocabulary), shape))
        return
    long = (
        Shape(prompts=1, prompt=250, trace=75, answer=50)
        if arguments.quick
        else Shape(prompts=1, prompt=1000, trace=300, answer=200)
    )
    wide = 2**14 if arguments.quick else 2**17
    packed, padded = (
        measure(arguments.model, scorer, 512, long) for scorer in ("packed", "padded")
    )
    small, large = (
        measure(arguments.model, "packed", vocabulary, Shape()) for vocabulary in (1024, wide)
    )
    figures = {
        "packed": packed,
        "padded": padded,
        "vocabulary 1024": small,
        f"vocabulary {wide}": large,
    }
    for name, value in figures.items():
        print(f"{name}: {value / MIB:.1f} MiB beyond weights, gradients and optimizer")
    bars = [
        Bar(f"peak over the oracle's, {arguments.model}, {long}", packed / padded, 0.5),
        Bar(
            f"growth from a vocabulary of 1,024 to {wide:,}, {arguments.model}, MiB",
            (large - small) / MIB,
            64,
        ),
    ]
    finish(
        f"memory-{arguments.model}",
        {name: value / MIB for name, value in figures.items()},
        bars,
        quick=arguments.quick,
    )


def measure(size: str, scorer: str, vocabulary: int, shape: Shape) -> int:
    """Return `peak` of a new process."""
    one = [
        scorer,
        *(
            str(number)
            for number in (vocabulary, shape.prompts, shape.prompt, shape.trace, shape.answer)
        ),
    ]
    command = [sys.executable, "-m", "benchmarks.memory", "--model", size, "--one", *one]
    return int(
        subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1]
    )


def peak(size: str, scorer: str, vocabulary: int, shape: Shape) -> int:
    """Return the most bytes that an update takes beyond what exists before it.

    Weights, all gradients and the optimizer's state exist before it.
    """
    model = llama(size, vocabulary=vocabulary)
    group = shape.prompt + shape.traces * (shape.trace + shape.answer + 2)
    padded = shape.traces * (shape.prompt + shape.trace + shape.answer + 2)
    learner = make_learner(
        model,
        shape,
        tokens_per_batch=padded if scorer == "padded" else group,
        initial_reference=False,
    )
    engine: Any = learner.policy.engine
    if scorer == "padded":
        engine.scorer = PaddedScorer(0)
    rows = rows_of(shape)
    for _ in range(2):
        update(learner, rows)
    create_gradients(engine)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward(engine, rows)
        engine.optimizer.step()
        return torch.cuda.max_memory_allocated() - before
    with Peak().watched() as watched:
        forward_and_backward(engine, rows)
        engine.optimizer.step()
    return watched.bytes


def create_gradients(engine: Any) -> None:
    """Create the gradients of all trained parameters, zero where there are none."""
    for parameter in engine.model.parameters():
        if parameter.requires_grad:
            engine.weights.gradient_of(parameter)


def forward_and_backward(engine: Any, rows: list[Row]) -> None:
    """Run an update's forwards and backwards, which add to the gradients that exist.

    An update of the engine would remove them first, and its peak come while few exist.
    """
    with engine.compiled.layers_of(engine.model), recomputing(engine.recomputed):
        backward(engine.scorer, engine.model, rows, engine.budget.tokens)


@dataclass(frozen=True)
class CreditedRow:
    """A row by itself as a group."""

    credit: RowCredit

    def row_credits(self) -> list[RowCredit]:
        """Return the row's credit."""
        return [self.credit]


def update(learner: Learner, rows: list[Row]) -> Any:
    """Take one optimizer step.

    Each row's credit comes from its own forward, as in an on-policy step.
    """

    def credit(i: int, tails: Sequence[TailScores]) -> CreditedRow:
        """Return a credit of -1, 0 or 1, in turns."""
        answer = rows[i].tail_roles.count(rows[i].tail_roles[-1])
        return CreditedRow(RowCredit(float(i % 3 - 1), torch.zeros(answer), tails[0][0]))

    denominator = len(rows) * learner.loss_tokens
    return learner.policy.engine.score_and_train(
        [[row] for row in rows], credit, learner.method, denominator=denominator
    )


if __name__ == "__main__":
    main()
