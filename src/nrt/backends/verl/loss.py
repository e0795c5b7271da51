"""The loss that verl's workers run in place of PPO's, set by `set_loss_fn`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric

from nrt.backends.verl.batch import rows_and_credits, split_tails
from nrt.objective import Method, nrt_loss, streams


def worker_loss(
    model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None, *, method: Method
) -> tuple[Tensor, dict[str, Metric]]:
    """Return (loss, metrics) of one micro-batch on one worker.

    The metrics are the loss, its terms, and sums over sampled tokens.

    The denominator counts all rows of the update and comes with the batch. verl averages gradients
    and metrics over its data-parallel ranks, so both are multiplied by the number of ranks. The
    result is the sum over all rows, however they are shared among ranks and micro-batches.
    """
    logp_N = torch.cat(split_tails(model_output["log_probs"], data["responses"]))
    rows, credits = rows_and_credits(data)
    ranks = tu.get(data, "dp_size")
    loss = nrt_loss(
        logp_N,
        streams(method, rows, credits, logp_N),
        ratio=method.ratio,
        ratio_clip=method.ratio_clip,
        denominator=tu.get(data, "nrt_denominator") / ranks,
    )
    metrics = {
        "total": loss.total,
        "trace": loss.trace,
        "answer": loss.answer,
        "format": loss.format,
        "ratio": ranks * loss.ratio_sum,
        "clipped": ranks * loss.clipped,
        "sampled": ranks * loss.sampled,
    }
    return loss.total, {
        f"nrt/{name}": Metric(AggregationType.SUM, float(value)) for name, value in metrics.items()
    }
