"""The readout: how likely the policy makes the reference answer after a trace that reaches it.

Reasoning pays only while the policy reads its traces. The answer term can unlearn that: trained
after wrong traces, it teaches to answer without them (docs/real-model.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from nrt.data.checkers import Checker, is_right
from nrt.trainer.groups import Group

MAX_TRACES = 256
"""Traces of a step that are checked: a checker may take milliseconds."""

MIN_RIGHT = 4
"""Right traces that a mean over them needs: with fewer it would be noise."""


def readout_metrics(
    groups: Sequence[Group], checker: Checker, decode: Callable[[Sequence[int]], str]
) -> dict[str, float]:
    """Return metrics of the right traces of a step, also by source if there are several.

    A trace is right if the checker would accept its text as an answer. With `last-number` that is a
    trace whose last number is the reference's. Only checkers that look for the answer inside a text
    can say so; `exact` cannot.

    - `readout/right`: share of right traces.
    - `readout/probability`: mean over them of the probability of the least likely answer token.
    - `readout/advantage`: mean over them of the advantage.

    The last two are absent if fewer than MIN_RIGHT traces are right, and all three without traces.
    Of a larger step only the first groups count, those with at most MAX_TRACES traces together.

    Args:
        decode: ids → text.
    """
    is_right_by_source: dict[str, list[bool]] = defaultdict(list)
    probability: dict[str, list[float]] = defaultdict(list)
    advantage: dict[str, list[float]] = defaultdict(list)
    checked = 0
    for group in groups:
        if checked and checked + len(group.traces) > MAX_TRACES:
            break
        checked += len(group.traces)
        example = group.pair.example
        for k, trace in enumerate(group.traces):
            right = is_right(checker, decode(trace.ids), example)
            is_right_by_source[example.source].append(right)
            if right:
                probability[example.source].append(group.logp_KT[k].min().exp().item())
                advantage[example.source].append(group.advantage_K[k].item())
    metrics = {}
    for name, values_by_source in (
        ("right", is_right_by_source),
        ("probability", probability),
        ("advantage", advantage),
    ):
        values = [value for part in values_by_source.values() for value in part]
        parts = {"": values}
        if len(is_right_by_source) > 1:
            parts |= {f"/{source}": part for source, part in sorted(values_by_source.items())}
        for suffix, part in parts.items():
            if len(part) >= (1 if name == "right" else MIN_RIGHT):
                metrics[f"readout/{name}{suffix}"] = fmean(part)
    return metrics
