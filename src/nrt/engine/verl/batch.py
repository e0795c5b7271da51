"""Rows of ids ↔ the batches that verl's workers take.

verl's prompt is a row's prompt and verl's response is its tail (START, trace, END, answer), so that every token of the tail gets a
log-probability. Everything is nested (jagged): no width is padded here, and none can enter a result.
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
    """What a forward needs: ids and positions of whole rows, and where their tails stand."""
    ids = [_integers(row.ids) for row in rows]
    tails = [one[len(row.prompt_ids) :] for one, row in zip(ids, rows, strict=True)]
    return {
        "input_ids": _nested(ids),
        "position_ids": _nested([torch.arange(len(one)) for one in ids]),
        "prompts": _nested([one[: len(row.prompt_ids)] for one, row in zip(ids, rows, strict=True)]),
        "responses": _nested(tails),
        "loss_mask": _nested([torch.ones_like(one) for one in tails]),  # verl counts its tokens; nothing here divides by them
    }


def update_batch(rows: Sequence[Row], credits: Sequence[RowCredit]) -> dict[str, Tensor]:
    """The same, and what the loss takes of each row and its credit. `rows_and_credits` is the inverse."""
    return score_batch(rows) | {
        "nrt_roles": _nested([_integers(row.tail_roles) for row in rows]),
        "nrt_end_sampled": torch.tensor([row.end_sampled for row in rows]),
        "nrt_old_logp": _nested([credit.old_logp_N.float() for credit in credits]),
        "nrt_sampler_logp": _nested(
            [(credit.old_logp_N if credit.sampler_logp_N is None else credit.sampler_logp_N).float() for credit in credits]
        ),
        "nrt_given": _nested([credit.given_T.double() for credit in credits]),
        "nrt_advantage": torch.tensor([credit.advantage for credit in credits], dtype=torch.float64),
        "nrt_reward": torch.tensor([credit.reward for credit in credits], dtype=torch.float64),
    }


def rows_and_credits(data: TensorDict | dict[str, Any]) -> tuple[list[Row], list[RowCredit]]:
    """Rows (without their prompts, which no loss looks at) and credits of a micro-batch."""
    keys = ("responses", "nrt_roles", "nrt_old_logp", "nrt_sampler_logp", "nrt_given")
    scalars = (data[key].tolist() for key in ("nrt_end_sampled", "nrt_advantage", "nrt_reward"))
    rows, credits = [], []
    for tail, role, logp, said, given, end_sampled, advantage, reward in zip(*(data[key].unbind() for key in keys), *scalars, strict=True):
        rows.append(Row((), tuple(tail.tolist()), tuple(Role(i) for i in role.tolist()), end_sampled))
        credits.append(RowCredit(advantage, given.cpu(), logp, reward, said))
    return rows, credits


def tails_of(predicted: Any, responses: Any) -> list[Tensor]:
    """Of what verl's engines predict at each position of whole rows [nested], the numbers of the tails' tokens, row by row."""
    values, ends, lengths = predicted.values(), predicted.offsets()[1:].tolist(), responses.offsets().diff().tolist()
    return [values[end - length - 1 : end - 1] for end, length in zip(ends, lengths, strict=True)]  # position i predicts token i + 1


def silent(row: Row) -> tuple[Row, RowCredit]:
    """A copy of the row in which no token takes part in any term of the loss: it fills a batch up, and changes nothing."""
    copied = Row(row.prompt_ids, row.tail_ids, (Role.PROMPT,) * len(row.tail_ids), end_sampled=False)
    return copied, RowCredit(0.0, torch.zeros(1), torch.zeros(len(row.tail_ids)))


def _integers(values: Sequence[int]) -> Tensor:
    """As torch.tensor, seven times as fast: the controller does this to every token of a step, alone."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def _nested(tensors: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)
