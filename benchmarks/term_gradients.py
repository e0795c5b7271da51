"""How large the gradient of each term of the loss is, at the checkpoints of finished runs.

    python -m benchmarks.term_gradients runs/equal-latent/runs/log-prob-seed* > gradients.jsonl

Each line has run, method, step (0: the initial model), and the norm of the gradient of the trace,
answer and format term over all weights, before clipping: the mean over `--batches` rollouts that
each checkpoint samples anew, of as many prompts and traces as a step of the run. Nothing is
trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from nrt.engine.local import LocalEngine
from nrt.errors import InputError
from nrt.run import Run
from nrt.trainer.checkpoint import load_checkpoint
from nrt.trainer.collect import compute_group, sample_groups, score_baselines, score_groups
from nrt.trainer.groups import Group
from nrt.trainer.learner import Learner
from nrt.trainer.metrics import PhaseTimer
from nrt.trainer.setup import Parts, in_one_process, prepare
from nrt.trainer.step import denominator
from nrt.types import Pair

TERMS = ("trace", "answer", "format")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--batches", type=int, default=4)
    arguments = parser.parse_args()
    for path in arguments.runs:
        run = Run(path)
        checkpoints: dict[int, Path | None] = {0: None}
        for folder in run.checkpoints():
            checkpoints[int(folder.name.split("-")[1])] = folder
        for step, checkpoint in sorted(checkpoints.items()):
            norms = checkpoint_norms(run, checkpoint, batches=arguments.batches)
            line = {"run": path.name, "method": run.config.method, "step": step, **norms}
            print(json.dumps(line), flush=True)


def checkpoint_norms(run: Run, checkpoint: Path | None, *, batches: int) -> dict[str, float]:
    """Return term → norm of its gradient, the mean over rollouts of a checkpoint.

    Raises InputError for a method with a state, which this script does not restore.
    """
    config = in_one_process(run.config)
    parts = prepare(config, checkpoint=checkpoint)
    if parts.learner.method.state_rule is not None:
        raise InputError(f"method {config.method} has a state; give runs of other methods")
    if checkpoint:
        load_checkpoint(checkpoint, parts.engine)
    norms: dict[str, list[float]] = {term: [] for term in TERMS}
    for i in range(batches):
        pairs = parts.draw(i * config.batch, config.batch)
        groups = roll_out(parts.learner, pairs, seed=2 * i)
        for term, gradient in term_gradients(parts, groups).items():
            norms[term].append(float(gradient.norm()))
    return {term: fmean(values) for term, values in norms.items()}


def roll_out(learner: Learner, pairs: Sequence[Pair], *, seed: int) -> list[Group]:
    """Sample and score the groups of one step, without an update."""
    timer = PhaseTimer()
    sampled = sample_groups(learner, pairs, timer, seed=seed, answer_seed=seed + 1)
    baselines = score_baselines(learner, sampled, timer)
    compute = partial(compute_group, learner, None, sampled, baselines)
    return [compute(g, tails) for g, tails in enumerate(score_groups(learner, sampled, timer))]


def term_gradients(parts: Parts, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return term → its gradient over all weights, one after another [weights]."""
    learner, engine = parts.learner, parts.engine
    assert isinstance(engine, LocalEngine)
    rows = [row for group in groups for row in group.rows]
    credits = [credit for group in groups for credit in group.row_credits()]
    gradients = {}
    for term in TERMS:
        others_off = {f"{other}_coef": 0.0 for other in TERMS if other != term}
        method = replace(learner.method, **others_off)
        engine.compute_gradient(rows, credits, method, denominator=denominator(learner, groups))
        parameters = engine.weights.masters.values()
        gradients[term] = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
    return gradients


if __name__ == "__main__":
    main()
