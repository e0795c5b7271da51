"""Skipped updates, whose loss or gradient was not finite: count them, and keep their batches for
`nrt replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.engine.interface import UpdateStats
from nrt.run import RunWriter, step_name
from nrt.trainer.groups import Group
from nrt.trainer.listener import Listener, warn
from nrt.trainer.progress import RolloutUpdates
from nrt.trainer.rollout_json import group_to_json


def skipped_in_a_row(before: int, updates: Sequence[UpdateStats]) -> int:
    """Return the number of skipped updates at the end of all updates, `before` of them before
    these.
    """
    count = before
    for update in updates:
        count = count + 1 if update.skipped else 0
    return count


def report_skipped(
    writer: RunWriter,
    listener: Listener,
    step: int,
    pending: RolloutUpdates,
    mini_batches: Sequence[Sequence[Group]],
    facts: dict[str, Any],
) -> None:
    """Write a file for each skipped update of a rollout, and warn of it.

    Args:
        facts: values that go into each file.
    """
    for i, (update, groups) in enumerate(zip(pending.updates, mini_batches, strict=False)):
        if not update.skipped:
            continue
        name = step_name(step) if len(mini_batches) == 1 else step_name(step, i)
        losses = {
            name: str(getattr(update, name))
            for name in ("total", "trace", "answer", "format", "grad_norm")
        }
        batch = {
            "step": step,
            "update": i,
            **facts,
            "loss": losses,
            "groups": [_group_json(group) for group in groups],
        }
        writer.skipped_batch(name, batch)
        path = writer.path / "skipped" / f"{name}.json"
        message = (
            f"update skipped: its loss is {update.total:.4g} and its gradient norm "
            f"{update.grad_norm:.4g}; "
            f"nrt replay {path} shows where"
        )
        details = {"update": i, "file": f"skipped/{name}.json"}
        warn(writer, listener, "skipped-update", message, step, **details)


def _group_json(group: Group) -> dict[str, Any]:
    pair = group.pair
    record: dict[str, Any] = {
        "id": pair.example.id,
        "source": pair.example.source,
        "prompt_ids": pair.prompt_ids,
        "answer_ids": pair.answer_ids,
    }
    if group.credit is not None:
        record["reward"] = group.credit.reward_K.tolist()
        record["advantage"] = group.advantage_K.tolist()
    return record | group_to_json(group)
