"""The loss that verl's workers run in place of PPO's, by `set_loss_fn`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric

from nrt.engine.verl.batch import rows_and_credits, tails_of
from nrt.objective import Method, nrt_loss, streams

SUMS = ("total", "trace", "answer", "format", "ratio", "clipped", "sampled")
"""Metrics of an update: the loss and its terms, and sums over sampled tokens."""


def worker_loss(
    model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None, *, method: Method
) -> tuple[Tensor, dict[str, Metric]]:
    """(loss, metrics) of one micro-batch on one worker.

    The denominator is global and comes with the batch. verl averages gradients and metrics over its data-parallel ranks, so both are
    multiplied by their number: what remains is the sum over all rows, however they are dealt out and cut.
    """
    logp_N = torch.cat(tails_of(model_output["log_probs"], data["responses"]))
    rows, credits = rows_and_credits(data)
    ranks = tu.get(data, "dp_size")
    parts = nrt_loss(
        logp_N,
        streams(method, rows, credits, logp_N),
        ratio=method.ratio,
        ratio_clip=method.ratio_clip,
        denominator=tu.get(data, "nrt_denominator") / ranks,
    )
    terms = (parts.total, parts.trace, parts.answer, parts.format, ranks * parts.ratio_sum, ranks * parts.clipped, ranks * parts.sampled)
    return parts.total, {f"nrt/{name}": Metric(AggregationType.SUM, float(term)) for name, term in zip(SUMS, terms, strict=True)}
