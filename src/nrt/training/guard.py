"""Updates that were skipped because loss or gradient were not finite: how many in a row, and the batch kept so that it can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.engine.local import UpdateStats
from nrt.run import RunWriter, step_name
from nrt.training.progress import InHand
from nrt.training.rollout import Group, group_to_json


def in_a_row(before: int, updates: Sequence[UpdateStats]) -> int:
    """Skipped updates at the end of all so far, of which `before` came before these."""
    for update in updates:
        before = before + 1 if update.skipped else 0
    return before


def report_skipped(writer: RunWriter, step: int, hand: InHand, parts: Sequence[Sequence[Group]], facts: dict[str, Any]) -> list[str]:
    """A warning and a file for each skipped update of a rollout; returns the warnings' texts. `facts` go into each file."""
    said = []
    for i, (update, groups) in enumerate(zip(hand.updates, parts, strict=False)):
        if not update.skipped:
            continue
        name = step_name(step) if len(parts) == 1 else step_name(step, i)
        writer.skipped_batch(name, {"step": step, "update": i, **facts, "loss": _said(update), "groups": [_group(g) for g in groups]})
        path = writer.path / "skipped" / f"{name}.json"
        message = (
            f"update skipped: its loss is {update.total:.4g} and its gradient's norm {update.grad_norm:.4g}; nrt replay {path} says where"
        )
        writer.warn("skipped-update", message, step, update=i, file=f"skipped/{name}.json")
        said.append(message)
    return said


def _said(update: UpdateStats) -> dict[str, str]:
    """As text, since JSON has no NaN."""
    values = {"total": update.total, "trace": update.trace, "answer": update.answer, "format": update.format}
    return {name: str(value) for name, value in (values | {"grad_norm": update.grad_norm}).items()}


def _group(group: Group) -> dict[str, Any]:
    pair = group.pair
    own = {"id": pair.example.id, "source": pair.example.source, "prompt_ids": pair.prompt_ids, "answer_ids": pair.answer_ids}
    if group.credit is not None:
        own |= {"reward": group.credit.reward_K.tolist(), "advantage": group.advantage_K.tolist()}
    return own | group_to_json(group)
