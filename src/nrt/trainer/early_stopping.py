"""`EarlyStopping`: a callback that stops a run when a held-out metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nrt.config import Config
from nrt.errors import InputError
from nrt.run import Record, Run
from nrt.run.metrics import describe
from nrt.trainer.callbacks import Callback, Control


class EarlyStopping(Callback):
    """Stop a run when a held-out metric has not improved for a number of evaluations.

    The evaluation before training counts. A resumed run continues the count of its metrics.
    """

    def __init__(
        self, metric: str = "heldout/accuracy", patience: int = 3, min_delta: float = 0.0
    ) -> None:
        """Raise InputError for a metric that is not a held-out metric, and for bad numbers.

        Args:
            metric: name of the metric. With `-` before it, smaller is better.
            patience: evaluations in a row without improvement after which the run stops.
            min_delta: a change counts as an improvement if it is larger than this.
        """
        self.metric = metric.removeprefix("-")
        self.sign = -1.0 if metric.startswith("-") else 1.0
        self.patience, self.min_delta = patience, min_delta
        if not self.metric.startswith("heldout/"):
            raise InputError(
                f"EarlyStopping: {metric} is not a held-out metric; give heldout/accuracy, "
                "heldout/logp or another heldout/… metric"
            )
        describe(self.metric)
        if patience < 1 or not min_delta >= 0:
            raise InputError(
                f"EarlyStopping: patience={patience}, min_delta={min_delta}; give a patience of at "
                "least 1 and a min_delta of at least 0"
            )
        self._best, self._waited = -math.inf, 0

    def check(self, config: Config) -> None:
        if not config.data.valid:
            raise InputError(
                "EarlyStopping has no held-out rows to evaluate on; give an eval_dataset "
                "(data.valid)"
            )
        if self.metric.startswith("heldout/accuracy") and not config.heldout.checker:
            raise InputError(
                f"EarlyStopping: {self.metric} needs a checker of answers; give checker=exact, "
                "last-number or contains (heldout.checker), or watch heldout/logp"
            )

    def on_start(self, run: Run, control: Control) -> None:
        self._best, self._waited = -math.inf, 0
        for record in run.metrics():
            if self.metric in record:
                self._count(record[self.metric])

    def on_evaluate(
        self, metrics: Mapping[str, Any], rows: Sequence[Record], control: Control
    ) -> None:
        if self.metric not in metrics:
            names = ", ".join(name for name in metrics if name != "step")
            raise InputError(
                f"the evaluation has no {self.metric}, it has {names}; accuracies need a checker "
                "(heldout.checker)"
            )
        self._count(metrics[self.metric])
        if self._waited >= self.patience:
            control.stop()

    def _count(self, value: float | None) -> None:
        """Compare a value with the best. NaN, which files hold as None, is no improvement."""
        score = -math.inf if value is None or math.isnan(value) else self.sign * value
        if score > self._best + self.min_delta:
            self._best, self._waited = score, 0
        else:
            self._waited += 1
