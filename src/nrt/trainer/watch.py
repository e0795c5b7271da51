"""Warnings from the metrics of a run: traces collapse (paper §4.3) or do not end with END, the
readout is lost, sampler and trainer differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeGuard

from nrt.config import WatchConfig

END_TOKENS_FROM = 50
"""First step with a warning about end tokens: before it a model may still learn to write END."""

MORE_ANSWER_MARKERS = 0.1
"""Growth of the share of held-out answers with a marker above which there is a warning."""

ANSWER_MARKERS_FROM = 10
"""First step with such a warning: a model may lose in a few steps what it won in the first."""

READOUT_STEPS = 5
"""Steps in each mean of the readout, which a run can lose within ten steps."""

COLLAPSE_REMEDY = (
    "policies collapse like this; the paper's remedy (§4.3) is a reward that easy tokens cannot "
    "win: method=nrt-gm, "
    "which one unlikely token lowers, or method=nrt-ws-neg-log-p, which gives hard tokens more "
    "weight, instead of an "
    "arithmetic mean (rlpr)"
)
READOUT_REMEDY = (
    "the policy learns to ignore its traces: the answer term, trained after wrong traces, teaches "
    "the answer without them; it may return when right traces spread. A new run with profile=paper "
    "is faster if the model writes answers in the right form already (docs/tuning.md)"
)
END_TOKEN_REMEDY = (
    "a served model ends its turn there and gives no answer (heldout/accuracy_served); raise "
    "objective.format_coef, "
    "train longer, or start END from another token (markers.end_from)"
)
ANSWER_MARKER_REMEDY = (
    "answers are broken by the markers; take an earlier checkpoint, or begin a new run with a "
    "larger objective.answer_coef, objective.answer_weight=1 or another method "
    "(docs/real-model.md)"
)
GAP_REMEDY = (
    "sampler and trainer are two different policies, so ratios and advantages are biased; lower "
    "the caps if the model's "
    "positions depend on the length of a batch (longrope, dynamic NTK), compute both in one type, "
    "or set "
    "objective.importance_cap=2"
)


@dataclass(frozen=True)
class Fall:
    """A warning about a metric whose late mean is below a share of its early mean."""

    kind: str
    metric: str
    share: float  # 0: no warning
    steps: int  # in each mean
    remedy: str


@dataclass(frozen=True)
class MetricWarning:
    """One warning: its kind in warnings.jsonl, its metric, and the text."""

    kind: str
    metric: str
    message: str


class Watch:
    """Reads the metrics of each step once, in order, and warns at most once about each metric."""

    def __init__(
        self,
        config: WatchConfig,
        earlier: Iterable[Mapping[str, Any]] = (),
        *,
        max_gap: float = float("inf"),
    ) -> None:
        """Create the watch of a run.

        Args:
            earlier: the metrics of a resumed run's earlier steps.
            max_gap: largest allowed mean difference between sampler and trainer
                (`sampler/logp_gap`), nats.
        """
        self.config, self.max_gap = config, max_gap
        collapse = {
            "trace/length": config.length,
            "trace/entropy": config.entropy,
            "reward/beats_null": config.beats_null,
        }
        self.falls = [
            Fall("collapse", metric, share, config.steps, COLLAPSE_REMEDY)
            for metric, share in collapse.items()
        ]
        self.falls.append(
            Fall("readout", "readout/probability", config.readout, READOUT_STEPS, READOUT_REMEDY)
        )
        self.early: dict[str, list[float]] = {fall.metric: [] for fall in self.falls}
        self.late: dict[str, list[float]] = {fall.metric: [] for fall in self.falls}
        self.end_tokens: list[float] = []
        self.first_answer_marker: float | None = None
        self.warned: set[str] = set()
        for metrics in earlier:
            self.see(metrics)

    def see(self, metrics: Mapping[str, Any]) -> list[MetricWarning]:
        """Return the new warnings that the metrics of a step cause."""
        warnings = [
            *self._fallen(metrics),
            *self._end_tokens(metrics),
            *self._answer_markers(metrics),
            *self._sampler_gap(metrics),
        ]
        new = [warning for warning in warnings if warning.metric not in self.warned]
        self.warned |= {warning.metric for warning in new}
        return new

    def _fallen(self, metrics: Mapping[str, Any]) -> list[MetricWarning]:
        """Warn about metrics whose mean over the last steps is below a share of their mean over the
        first steps.
        """
        warnings = []
        for fall in self.falls:
            value = metrics.get(fall.metric)
            if not fall.share or not _is_number(value):
                continue
            early = self.early[fall.metric]
            if len(early) < fall.steps:
                early.append(value)
                continue
            late = [*self.late[fall.metric], value][-fall.steps :]
            self.late[fall.metric] = late
            before, now = fmean(early), fmean(late)
            if len(late) == fall.steps and now < fall.share * before:
                message = (
                    f"{fall.metric} fell to {now:.3g}, below {fall.share:g} of its early "
                    f"{before:.3g}: {fall.remedy}"
                )
                warnings.append(MetricWarning(fall.kind, fall.metric, message))
        return warnings

    def _end_tokens(self, metrics: Mapping[str, Any]) -> list[MetricWarning]:
        """Warn if end tokens other than END still stop many traces after END_TOKENS_FROM steps."""
        value = metrics.get("trace/end_token")
        if not self.config.end_token or not _is_number(value):
            return []
        self.end_tokens = [*self.end_tokens, value][-self.config.steps :]
        share = fmean(self.end_tokens)
        if metrics.get("step", 0) < END_TOKENS_FROM or share <= self.config.end_token:
            return []
        message = (
            f"end tokens other than END still stop {share:.0%} of the traces: {END_TOKEN_REMEDY}"
        )
        return [MetricWarning("end-token", "trace/end_token", message)]

    def _answer_markers(self, metrics: Mapping[str, Any]) -> list[MetricWarning]:
        """Warn if training makes markers more frequent in answers.

        At the start a new END is a copy of another token, and may stand anywhere.
        """
        share = metrics.get("heldout/answer_marker")
        if not _is_number(share):
            return []
        if self.first_answer_marker is None:
            self.first_answer_marker = share
        first = self.first_answer_marker
        if metrics.get("step", 0) < ANSWER_MARKERS_FROM or share <= first + MORE_ANSWER_MARKERS:
            return []
        message = (
            f"START or END stands in {share:.0%} of the held-out answers ({first:.0%} at first): "
            f"{ANSWER_MARKER_REMEDY}"
        )
        return [MetricWarning("answer-marker", "heldout/answer_marker", message)]

    def _sampler_gap(self, metrics: Mapping[str, Any]) -> list[MetricWarning]:
        """Warn if sampled and scored log-probabilities differ. Traces of earlier weights
        (`sampler/behind`) must differ.
        """
        gap = metrics.get("sampler/logp_gap")
        if not _is_number(gap) or metrics.get("sampler/behind") or gap <= self.max_gap:
            return []
        message = (
            f"sampler/logp_gap is {gap:.2g} nats in the mean, above {self.max_gap:g}: {GAP_REMEDY}"
        )
        return [MetricWarning("sampler-gap", "sampler/logp_gap", message)]


def _is_number(value: Any) -> TypeGuard[float]:
    return value is not None and value == value
