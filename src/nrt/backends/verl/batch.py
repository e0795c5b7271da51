"""Rows of ids ↔ the batches that verl's workers take.

verl's prompt is a row's prompt. verl's response is the row's tail (START, trace, END, answer), so
every token of the tail gets a log-probability. All tensors of token sequences are nested (jagged):
no batch is padded here, so padding cannot change a result.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from nrt.objective import RowCredit
from nrt.types import Role, Row


def score_batch(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return what a forward needs: ids and positions of rows, split into prompts and tails."""
    ids, prompts, tails = [], [], []
    for row in rows:
        row_ids = _integers(row.ids)
        ids.append(row_ids)
        prompts.append(row_ids[: len(row.prompt_ids)])
        tails.append(row_ids[len(row.prompt_ids) :])
    return {
        "input_ids": _nested(ids),
        "position_ids": _nested([torch.arange(len(row_ids)) for row_ids in ids]),
        "prompts": _nested(prompts),
        "responses": _nested(tails),
        # verl counts the tokens of this mask; nrt's loss does not divide by them
        "loss_mask": _nested([torch.ones_like(tail) for tail in tails]),
    }


def update_batch(rows: Sequence[Row], credits: Sequence[RowCredit]) -> dict[str, Tensor]:
    """Return `score_batch`, and what the loss needs of each row and its credit.

    `rows_and_credits` is the inverse.
    """
    sampler_logps = [
        credit.old_logp_N if credit.sampler_logp_N is None else credit.sampler_logp_N
        for credit in credits
    ]
    return score_batch(rows) | {
        "nrt_roles": _nested([_integers(row.tail_roles) for row in rows]),
        "nrt_end_sampled": torch.tensor([row.end_sampled for row in rows]),
        "nrt_old_logp": _nested([credit.old_logp_N.float() for credit in credits]),
        "nrt_sampler_logp": _nested([logp_N.float() for logp_N in sampler_logps]),
        "nrt_weights": _nested([credit.weights_T.double() for credit in credits]),
        "nrt_advantage": torch.tensor([c.advantage for c in credits], dtype=torch.float64),
        "nrt_reward": torch.tensor([c.reward for c in credits], dtype=torch.float64),
        "nrt_beats_null": torch.tensor([c.beats_null for c in credits]),
        "nrt_posterior": torch.tensor([c.posterior for c in credits], dtype=torch.float64),
    }


def rows_and_credits(data: TensorDict | dict[str, Any]) -> tuple[list[Row], list[RowCredit]]:
    """Return the rows and credits of a micro-batch.

    The rows have no prompts, because the loss does not read them.
    """
    sequences = ("responses", "nrt_roles", "nrt_old_logp", "nrt_sampler_logp", "nrt_weights")
    numbers = (
        "nrt_end_sampled", "nrt_advantage", "nrt_reward", "nrt_beats_null", "nrt_posterior"
    )  # fmt: skip
    columns = [data[key].unbind() for key in sequences] + [data[key].tolist() for key in numbers]
    rows, credits = [], []
    for tail, roles, old_logp_N, sampler_logp_N, weights_T, *row_numbers in zip(
        *columns, strict=True
    ):
        end_sampled, advantage, reward, beats_null, posterior = row_numbers
        tail_roles = tuple(Role(role) for role in roles.tolist())
        rows.append(Row((), tuple(tail.tolist()), tail_roles, end_sampled))
        credits.append(
            RowCredit(
                advantage,
                weights_T.cpu(),
                old_logp_N,
                reward,
                sampler_logp_N,
                beats_null,
                posterior,
            )
        )
    return rows, credits


def split_tails(predictions: Any, responses: Any) -> list[Tensor]:
    """Return the numbers of the tails' tokens, row by row.

    Args:
        predictions: one number a position of whole rows, nested; position i predicts token i + 1.
        responses: the rows' tails, nested.
    """
    values = predictions.values()
    ends = predictions.offsets()[1:].tolist()
    lengths = responses.offsets().diff().tolist()
    tails = []
    for end, length in zip(ends, lengths, strict=True):
        tails.append(values[end - length - 1 : end - 1])
    return tails


def filler_row(row: Row) -> tuple[Row, RowCredit]:
    """Return a copy of the row, and its credit, that add nothing to the loss.

    It fills a batch up to a multiple of the workers: none of its tokens has a role in the loss.
    """
    roles = (Role.PROMPT,) * len(row.tail_ids)
    filler = Row(row.prompt_ids, row.tail_ids, roles, end_sampled=False)
    return filler, RowCredit(0.0, torch.zeros(1), torch.zeros(len(row.tail_ids)))


def _integers(values: Sequence[int]) -> Tensor:
    """Return an int64 tensor, seven times as fast as torch.tensor.

    The controller, a single process, converts every token of a step.
    """
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def _nested(tensors: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)
