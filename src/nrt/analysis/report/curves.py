"""Metrics over steps, few enough points for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

MOST_POINTS = 500


@dataclass(frozen=True)
class Curve:
    """One metric of one run."""

    steps: list[float]
    values: list[float]


def read_curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every metric that has a value in some step; beyond 500 points, means of that many stretches of equal length.

    `gain` is added: answer/logp − answer/logp_null, in nats per token, since rewards of different methods have no common scale.
    """
    metrics = [{**record, **_gain(record)} for record in metrics]
    names = dict.fromkeys(name for record in metrics for name in record if name != "step")
    curves = {}
    for name in names:
        points = [(record["step"], record[name]) for record in metrics if isinstance(record.get(name), (int, float))]
        if points:
            curves[name] = _thinned(points)
    return curves


def _gain(record: Mapping[str, Any]) -> dict[str, float]:
    after, null = record.get("answer/logp"), record.get("answer/logp_null")
    return {} if after is None or null is None else {"gain": after - null}


def _thinned(points: Sequence[tuple[int, float]]) -> Curve:
    n = len(points)
    edges = [round(i * n / MOST_POINTS) for i in range(MOST_POINTS + 1)] if n > MOST_POINTS else list(range(n + 1))
    stretches = [points[a:b] for a, b in pairwise(edges)]
    return Curve(
        [round(fmean(step for step, _ in stretch), 1) for stretch in stretches],
        [float(f"{fmean(value for _, value in stretch):.5g}") for stretch in stretches],
    )
