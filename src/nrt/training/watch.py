"""Warnings from the metrics of a run: traces that collapse (paper §4.3) or do not end with END, a sampler that is not the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeGuard

from nrt.config import WatchConfig

END_TOKENS_FROM = 50
"""Steps in which a model may still learn to write END."""

COLLAPSE_REMEDY = (
    "this is how policies collapse; the paper's remedy (§4.3) is a reward that a few easy tokens cannot win: method=nrt-gm, which one "
    "unlikely token brings down, or method=nrt-ws-neg-log-p, which weighs hard tokens up, in place of an arithmetic mean (rlpr)"
)
END_TOKEN_REMEDY = (
    "a served model ends its turn there and gives no answer (heldout/accuracy_served); raise objective.format_coef, train longer, or "
    "start END from another token (markers.end_from)"
)
GAP_REMEDY = (
    "sampler and trainer are two policies, so the ratio and the advantages are those of other traces; lower the caps if the model's "
    "positions depend on the length of a batch (longrope, dynamic NTK), compute both in one type, or set objective.importance_cap=2"
)


@dataclass(frozen=True)
class Warned:
    """One warning: its kind in warnings.jsonl, the metric it is about, and the text."""

    kind: str
    metric: str
    message: str


class Watch:
    """Reads the metrics of each step once, in order; of a resumed run, first those of the steps before. Warns once a metric."""

    def __init__(self, config: WatchConfig, before: Iterable[Mapping[str, Any]] = (), *, most_gap: float = float("inf")) -> None:
        """`most_gap`: most nats that sampler and trainer may differ by in the mean (`sampler/logp_gap`)."""
        self.config, self.most_gap = config, most_gap
        self.collapse = {"trace/length": config.length, "trace/entropy": config.entropy, "reward/beats_null": config.beats_null}
        watched = [name for name, share in self.collapse.items() if share]
        self.early: dict[str, list[float]] = {name: [] for name in watched}
        self.late: dict[str, list[float]] = {name: [] for name in watched}
        self.end_tokens: list[float] = []
        self.warned: set[str] = set()
        for metrics in before:
            self.see(metrics)

    def see(self, metrics: Mapping[str, Any]) -> list[Warned]:
        """The warnings that this step's metrics call for."""
        warnings = [*self._collapsed(metrics), *self._end_tokens(metrics), *self._sampler_gap(metrics)]
        new = [warning for warning in warnings if warning.metric not in self.warned]
        self.warned |= {warning.metric for warning in new}
        return new

    def _collapsed(self, metrics: Mapping[str, Any]) -> list[Warned]:
        """Metrics whose mean over the last steps fell below a share of that of the first ones."""
        fallen = []
        steps = self.config.steps
        for name, early in self.early.items():
            value = metrics.get(name)
            if not _is_number(value):
                continue
            if len(early) < steps:
                early.append(value)
                continue
            self.late[name] = [*self.late[name], value][-steps:]
            first, now, share = fmean(early), fmean(self.late[name]), self.collapse[name]
            if len(self.late[name]) == steps and now < share * first:
                message = f"{name} fell to {now:.3g}, below {share:g} of its early {first:.3g}: {COLLAPSE_REMEDY}"
                fallen.append(Warned("collapse", name, message))
        return fallen

    def _end_tokens(self, metrics: Mapping[str, Any]) -> list[Warned]:
        """End tokens other than END that still stop many traces after END_TOKENS_FROM steps."""
        value = metrics.get("trace/end_token")
        if not self.config.end_token or not _is_number(value):
            return []
        self.end_tokens = [*self.end_tokens, value][-self.config.steps :]
        share = fmean(self.end_tokens)
        if metrics.get("step", 0) < END_TOKENS_FROM or share <= self.config.end_token:
            return []
        message = f"end tokens other than END still stop {share:.0%} of the traces: {END_TOKEN_REMEDY}"
        return [Warned("end-token", "trace/end_token", message)]

    def _sampler_gap(self, metrics: Mapping[str, Any]) -> list[Warned]:
        """Sampled and scored log-probabilities that differ. Traces of earlier weights (`sampler/behind`) differ by right."""
        gap = metrics.get("sampler/logp_gap")
        if not _is_number(gap) or metrics.get("sampler/behind") or gap <= self.most_gap:
            return []
        message = f"sampler/logp_gap is {gap:.2g} nats in the mean, above {self.most_gap:g}: {GAP_REMEDY}"
        return [Warned("sampler-gap", "sampler/logp_gap", message)]


def _is_number(value: Any) -> TypeGuard[float]:
    return value is not None and value == value
