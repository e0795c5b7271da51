"""The collapse watch: one warning a metric where traces get short, certain of themselves, or useless (paper §4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from nrt.config import WatchConfig

REMEDY = (
    "this is how policies collapse; the paper's remedy (§4.3) is a reward that a few easy tokens cannot win: method=nrt-gm, which one "
    "unlikely token brings down, or method=nrt-ws-neg-log-p, which weighs hard tokens up, in place of an arithmetic mean (rlpr)"
)


class Watch:
    """Sees the metrics of each step once, in order; of a resumed run, those of the steps before."""

    def __init__(self, config: WatchConfig, before: Iterable[Mapping[str, Any]] = ()) -> None:
        self.steps = config.steps
        self.shares = {"trace/length": config.length, "trace/entropy": config.entropy, "reward/beats_null": config.beats_null}
        self.early: dict[str, list[float]] = {name: [] for name, share in self.shares.items() if share}
        self.late: dict[str, list[float]] = {name: [] for name in self.early}
        for metrics in before:
            self.see(metrics)

    def see(self, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(metric, warning) of what fell with this step."""
        fallen = []
        for name in list(self.early):
            value = metrics.get(name)
            if value is None or value != value:
                continue
            if len(self.early[name]) < self.steps:
                self.early[name].append(value)
                continue
            self.late[name] = [*self.late[name], value][-self.steps :]
            first, now = fmean(self.early[name]), fmean(self.late[name])
            if len(self.late[name]) == self.steps and now < self.shares[name] * first:
                fallen.append((name, f"{name} fell to {now:.3g}, below {self.shares[name]:g} of its early {first:.3g}: {REMEDY}"))
                del self.early[name]  # once a metric
        return fallen
