"""Metrics over steps, with few enough points for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

MAX_POINTS = 500


@dataclass(frozen=True)
class Curve:
    """One metric of one run."""

    steps: list[float]
    values: list[float]


def read_curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return every metric that has a number in some step.

    A curve of more than MAX_POINTS points becomes that many means over stretches of equal length.
    `gain` is added: answer/logp − answer/logp_null, in nats per token, because rewards of
    different methods have no common scale.
    """
    metrics = [{**record, **_gain(record)} for record in metrics]
    names = dict.fromkeys(name for record in metrics for name in record if name != "step")
    curves = {}
    for name in names:
        points = []
        for record in metrics:
            value = record.get(name)
            if isinstance(value, (int, float)):
                points.append((record["step"], value))
        if points:
            curves[name] = _downsample(points)
    return curves


def _gain(record: Mapping[str, Any]) -> dict[str, float]:
    logp, logp_null = record.get("answer/logp"), record.get("answer/logp_null")
    return {} if logp is None or logp_null is None else {"gain": logp - logp_null}


def _downsample(points: Sequence[tuple[int, float]]) -> Curve:
    count = len(points)
    if count > MAX_POINTS:
        edges = [round(i * count / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    else:
        edges = list(range(count + 1))
    stretches = [points[start:end] for start, end in pairwise(edges)]
    return Curve(
        [round(fmean(step for step, _ in stretch), 1) for stretch in stretches],
        [float(f"{fmean(value for _, value in stretch):.5g}") for stretch in stretches],
    )
