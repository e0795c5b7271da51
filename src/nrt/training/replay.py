"""A batch whose update was skipped, once more: where does it become non-finite?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.durable import read_bounded
from nrt.errors import InputError
from nrt.run import Run
from nrt.training.checkpoint import load_checkpoint
from nrt.training.rollout import Group, from_json
from nrt.training.setup import Parts, prepare
from nrt.types import Example, Pair

MOST = 10
"""Findings of one kind that are listed."""


def replay(file: str | Path, checkpoint: str | Path | None = None, *, say: Callable[[str], None] = print) -> list[str]:
    """Computes the loss of a batch in RUN/skipped/ under a checkpoint of the run, and says where it is not finite: in the weights, the
    log-probabilities, the rewards and advantages that were given, the loss, the gradient. Writes nothing; returns the findings.
    In this process, whatever engine the run had.

    `checkpoint` is a folder; unset: the one that was the last when the update was skipped, or the initial model where there is none.
    Raises InputError for a file that is no such batch.
    """
    file = Path(file).resolve()
    try:
        batch = json.loads(read_bounded(file))
        pairs = [Pair(Example(g["id"], (), "", g["source"]), tuple(g["prompt_ids"]), tuple(g["answer_ids"])) for g in batch["groups"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a skipped batch ({error}); give a file RUN/skipped/step-….json") from None
    run = Run(file.parents[1])
    folder = Path(checkpoint) if checkpoint else _last(run, batch["checkpoint"])
    local = run.config.engine == "local"
    parts = prepare(run.config.model_copy(update={"overlap": False, "engine": "local"}), checkpoint=folder)
    engine, method = parts.stepper.policy.engine, parts.stepper.method
    if folder and local:  # a cluster's checkpoint has its model for everybody, and nothing else that a gradient depends on
        load_checkpoint(folder, engine)
    say(f"step {batch['step']}, {len(pairs)} prompts, under {folder or 'the initial model'}; then: {batch['loss']}")
    state = None if batch["memory"] is None else torch.tensor(batch["memory"], dtype=torch.float64)
    values = {"groups": [_with_nan(g) for g in batch["groups"]], "offsets": (), "drawn": 0, "metrics": {}, "statistics": None}
    groups = from_json(values, pairs, method, parts.stepper.policy.markers, state).groups
    found = []
    for finding in _findings(parts, groups):
        found.append(finding)
        say(finding)
    if not found:
        say("all is finite here: it was the weights of that step, or what the device computed then")
    return found


def _findings(parts: Parts, groups: Sequence[Group]) -> Iterator[str]:
    engine, decode = parts.stepper.policy.engine, parts.chat.decode
    yield from _listed(f"weight {name}: {_count(p)}" for name, p in engine.parameters() if _bad(p))
    places = [(group, k) for group in groups for k in range(len(group.rows))]
    yield from _listed(
        f"log-probability of token {t + 1} ({decode((row.tail_ids[t],))!r}, {row.tail_roles[t].name}) of trace {k + 1} "
        f"of {group.pair.example.id}: {logp[t].item()}"
        for (group, k), (logp, _) in zip(places, parts.stepper.policy.score([g.rows[k] for g, k in places]), strict=True)
        for row in [group.rows[k]]
        for t in (~logp.isfinite()).nonzero().flatten().tolist()
    )
    for name in ("reward", "advantage"):
        yield from _listed(
            f"{name} of trace {k + 1} of {group.pair.example.id}, as it was given: {value}"
            for group in groups
            if group.credit is not None
            for k, value in enumerate((group.credit.reward_K if name == "reward" else group.advantage_K).tolist())
            if _bad(torch.tensor(value))
        )
    sums = parts.stepper.gradient(groups)
    for term in ("trace", "answer", "format", "total"):
        if _bad(torch.tensor(value := getattr(sums, term))):
            yield f"loss, {term}: {value}"
    gradients = {name: master.grad for name, master in engine.weights.masters.items() if master.grad is not None}
    yield from _listed(f"gradient of {name}: {_count(gradient)}" for name, gradient in gradients.items() if _bad(gradient))


def _listed(findings: Iterator[str]) -> Iterator[str]:
    """The first ones, and how many more there are."""
    everything = list(findings)
    yield from everything[:MOST]
    if more := everything[MOST:]:
        yield f"… and {len(more)} more of these"


def _bad(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def _count(tensor: Tensor) -> str:
    return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values are not finite"


def _last(run: Run, name: str | None) -> Path | None:
    """The checkpoint of that name, or the run's last one before it was pruned away; None without any."""
    there = run.checkpoints()
    return next((folder for folder in there if folder.name == name), there[0] if there and name else None)


def _with_nan(value: Any) -> Any:
    """What JSON made null of in lists of numbers."""
    if isinstance(value, Mapping):
        return {key: _with_nan(item) for key, item in value.items()}
    return [float("nan") if item is None else _with_nan(item) for item in value] if isinstance(value, list) else value
