"""`nrt replay`: compute the loss of a skipped batch again, and find where it is not finite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.engine.local import LocalEngine
from nrt.errors import InputError
from nrt.run import Run, run_folder
from nrt.system.files import read_bounded
from nrt.trainer.checkpoint import MAX_STATE_BYTES, load_checkpoint
from nrt.trainer.groups import Group
from nrt.trainer.rollout_json import rollout_from_json
from nrt.trainer.setup import Parts, in_one_process, prepare
from nrt.trainer.step import denominator
from nrt.types import Example, Pair

MAX_LISTED = 10
"""Findings of one kind that are listed."""


def replay(
    file: str | Path, checkpoint: str | Path | None = None, *, say: Callable[[str], None] = print
) -> list[str]:
    """Compute the loss of a batch in RUN/skipped/ and report where it is not finite. Writes
    nothing.

    It looks at weights, log-probabilities, the saved rewards and advantages, the loss and the
    gradient, in this process, whatever engine the run had.

    Args:
        checkpoint: folder of a checkpoint of the run. By default the last one before the update was
            skipped, or the initial model if there is none.

    Returns: the findings, which `say` also receives.

    Raises InputError for a file that is no such batch.
    """
    named = run_folder(str(file))
    if os.path.isdir(named):  # Path raises for names that are too long
        batches = sorted((named / "skipped").glob("step-*.json"))
        hint = f", such as {batches[0]}" if batches else "; this run has none"
        raise InputError(f"{named} is a folder; give the file of a skipped batch{hint}")
    file = Path(file).resolve()
    batch, pairs = _read_batch(file)
    run = Run(file.parents[1])
    folder = Path(checkpoint) if checkpoint else _last_checkpoint(run, batch["checkpoint"])
    parts = prepare(in_one_process(run.config), checkpoint=folder)
    # A cluster's checkpoint has an ordinary model; the rest is not needed
    if folder and run.config.engine == "local":
        load_checkpoint(folder, parts.engine)
    say(
        f"step {batch['step']}, {len(pairs)} prompts, under {folder or 'the initial model'}; then: "
        f"{batch['loss']}"
    )
    findings = []
    for finding in _findings(parts, _read_groups(batch, pairs, parts)):
        findings.append(finding)
        say(finding)
    if not findings:
        say(
            "all is finite here: the cause was in the weights of that step, or in what the device "
            "computed then"
        )
    return findings


def _read_batch(file: Path) -> tuple[dict[str, Any], list[Pair]]:
    """Return a skipped batch as JSON, and its pairs. Raises InputError for another file."""
    try:
        batch = json.loads(read_bounded(file, MAX_STATE_BYTES))
        pairs = [
            Pair(
                Example(g["id"], (), "", g["source"]),
                tuple(g["prompt_ids"]),
                tuple(g["answer_ids"]),
            )
            for g in batch["groups"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a skipped batch ({error}); give a file RUN/skipped/step-….json"
        ) from None
    return batch, pairs


def _read_groups(batch: Mapping[str, Any], pairs: list[Pair], parts: Parts) -> tuple[Group, ...]:
    """Return the groups of a skipped batch, with the state that the method had then."""
    state = None if batch["memory"] is None else torch.tensor(batch["memory"], dtype=torch.float64)
    rollout_json = {
        "groups": [_null_to_nan(group) for group in batch["groups"]],
        "offsets": (),
        "drawn": 0,
        "metrics": {},
        "statistics": None,
    }
    rollout = rollout_from_json(
        rollout_json, pairs, parts.learner.method, parts.policy.markers, state
    )
    return rollout.groups


def _findings(parts: Parts, groups: Sequence[Group]) -> Iterator[str]:
    engine, method = parts.engine, parts.learner.method
    assert isinstance(engine, LocalEngine)  # `replay` prepared one
    yield from _listed(
        f"weight {name}: {_count(p)}" for name, p in engine.parameters() if _not_finite(p)
    )
    yield from _listed(_bad_logps(parts, groups))
    for name in ("reward", "advantage"):
        yield from _listed(_bad_values(groups, name))
    rows = [row for group in groups for row in group.rows]
    credits = [credit for group in groups for credit in group.row_credits()]
    sums = engine.compute_gradient(
        rows, credits, method, denominator=denominator(parts.learner, groups)
    )
    for term in ("trace", "answer", "format", "total"):
        value = getattr(sums, term)
        if _not_finite(torch.tensor(value)):
            yield f"loss, {term}: {value}"
    gradients = {
        name: master.grad
        for name, master in engine.weights.masters.items()
        if master.grad is not None
    }
    yield from _listed(
        f"gradient of {name}: {_count(g)}" for name, g in gradients.items() if _not_finite(g)
    )


def _bad_logps(parts: Parts, groups: Sequence[Group]) -> Iterator[str]:
    """Find log-probabilities that are not finite."""
    decode = parts.chat.decode
    places = [(group, k) for group in groups for k in range(len(group.rows))]
    scores = parts.policy.score([group.rows[k] for group, k in places])
    for (group, k), (logp, _) in zip(places, scores, strict=True):
        row = group.rows[k]
        for t in (~logp.isfinite()).nonzero().flatten().tolist():
            token = f"{decode((row.tail_ids[t],))!r}, {row.tail_roles[t].name}"
            trace = f"trace {k + 1} of {group.pair.example.id}"
            yield f"log-probability of token {t + 1} ({token}) of {trace}: {logp[t].item()}"


def _bad_values(groups: Sequence[Group], name: str) -> Iterator[str]:
    """Find saved rewards or advantages that are not finite."""
    for group in groups:
        if group.credit is None:
            continue
        values_K = group.credit.reward_K if name == "reward" else group.advantage_K
        for k, value in enumerate(values_K.tolist()):
            if _not_finite(torch.tensor(value)):
                trace = f"trace {k + 1} of {group.pair.example.id}"
                yield f"{name} of {trace}, as it was saved: {value}"


def _listed(findings: Iterator[str]) -> Iterator[str]:
    """Yield the first findings, and the number of the others."""
    everything = list(findings)
    yield from everything[:MAX_LISTED]
    if len(everything) > MAX_LISTED:
        yield f"… and {len(everything) - MAX_LISTED} more of these"


def _not_finite(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def _count(tensor: Tensor) -> str:
    return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values are not finite"


def _last_checkpoint(run: Run, name: str | None) -> Path | None:
    """Return the checkpoint of that name, or the run's first if that one was pruned; None without
    any.
    """
    checkpoints = run.checkpoints()
    for folder in checkpoints:
        if folder.name == name:
            return folder
    return checkpoints[0] if checkpoints and name else None


def _null_to_nan(value: Any) -> Any:
    """Return JSON values with NaN for null in lists of numbers: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _null_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [float("nan") if item is None else _null_to_nan(item) for item in value]
    return value
