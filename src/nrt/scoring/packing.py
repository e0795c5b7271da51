"""Packed layout of rows: each prompt is forwarded once, followed by its tails, without padding.

    rows      x x x │ a a a a      x x x │ b b b      y y │ c c c
    packed    x x x a a a b b y y c c
    position  0 1 2 3 4 5 3 4 0 1 2 3

Each tail sees its prompt and itself. The last tail token is not forwarded: it is predicted, but
predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nrt.errors import InputError
from nrt.types import Role, Row

BANNED_LOGIT = -1e30
"""Logit of a banned token: finite, so its probability is 0 and no product with it is NaN."""


@dataclass(frozen=True)
class PromptGroup:
    """Half-open ranges of one prompt and its tails; the tails follow the prompt and one another."""

    prompt: tuple[int, int]
    tails: tuple[tuple[int, int], ...]  # none of them empty

    @property
    def stop(self) -> int:
        """End of the group's last range."""
        return self.tails[-1][1] if self.tails else self.prompt[1]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence."""
        prompt = self.prompt[1] - self.prompt[0]
        return prompt + max((stop - start for start, stop in self.tails), default=0)


@dataclass(frozen=True)
class PackedLayout:
    """F tokens to forward, and which of their hidden states predict the N tail tokens."""

    ids_F: Tensor
    positions_F: Tensor
    groups: tuple[PromptGroup, ...]
    predictor_N: Tensor  # index in F of the hidden state that predicts each tail token, row by row
    target_N: Tensor  # ids of the tail tokens
    banned_N: Tensor | None  # see `banned_tokens`
    temperature_N: Tensor | None  # see `temperatures`
    lengths: tuple[int, ...]  # number of tail tokens of each row

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence; no query is further than this from a key."""
        return max(group.longest for group in self.groups)


def banned_tokens(rows: Sequence[Row], device: torch.device | str) -> Tensor | None:
    """Return for each tail token an id of probability 0 at its position, or −1; None if all are −1.

    START opens a trace and is no action inside it. The policy over traces and END is the softmax
    over all other tokens, and samplers never draw START. If a trace contains START nevertheless
    (an engine that cannot ban it sampled the trace), that START keeps its probability.
    """
    banned = []
    for row in rows:
        if row.tail_roles[:1] != (Role.START,):
            banned += [-1] * len(row.tail_ids)
            continue
        start = row.tail_ids[0]
        for token, role in zip(row.tail_ids, row.tail_roles, strict=True):
            is_action = role is Role.TRACE or role is Role.END
            banned.append(start if is_action and token != start else -1)
    return torch.tensor(banned, device=device) if max(banned, default=-1) >= 0 else None


def temperatures(rows: Sequence[Row], device: torch.device | str) -> Tensor | None:
    """Return the temperature of each tail token's distribution, float32; None if all are 1.

    Tokens that the policy sampled, in traces and in answers of its own, have their row's, so that
    they are scored under the distribution from which they came. START, an appended END and the
    reference answer have 1.
    """
    if all(row.temperature == 1 for row in rows):
        return None
    parts = []
    for row in rows:
        is_action = row.sampled_mask | row.mask(Role.SAMPLED_ANSWER)
        parts.append(torch.where(is_action, row.temperature, 1.0))
    return torch.cat(parts).to(device)


def lay_out(
    rows: Sequence[Row], device: torch.device | str = "cpu", *, ban_start: bool = True
) -> PackedLayout:
    """Return the packed layout of the rows. Rows with equal prompts form a group.

    Args:
        ban_start: see `banned_tokens`.

    Raises InputError for a row without prompt or tail.
    """
    check_rows(rows)
    ids: list[int] = []
    positions: list[int] = []
    groups: list[PromptGroup] = []
    predictors: list[list[int]] = [[] for _ in rows]
    for prompt, members in by_prompt(rows).items():
        prompt_start = len(ids)
        ids += prompt
        positions += range(len(prompt))
        prompt_stop = len(ids)
        ends = [prompt_stop]
        for r in members:
            forwarded = rows[r].tail_ids[:-1]
            predictors[r] = [prompt_stop - 1, *range(len(ids), len(ids) + len(forwarded))]
            ids += forwarded
            positions += range(len(prompt), len(prompt) + len(forwarded))
            ends.append(len(ids))
        tails = tuple((start, stop) for start, stop in pairwise(ends) if start < stop)
        groups.append(PromptGroup((prompt_start, prompt_stop), tails))
    flat_predictors = [index for row_predictors in predictors for index in row_predictors]
    targets = [token for row in rows for token in row.tail_ids]
    return PackedLayout(
        ids_F=torch.tensor(ids, device=device),
        positions_F=torch.tensor(positions, device=device),
        groups=tuple(groups),
        predictor_N=torch.tensor(flat_predictors, device=device),
        target_N=torch.tensor(targets, device=device),
        banned_N=banned_tokens(rows, device) if ban_start else None,
        temperature_N=temperatures(rows, device),
        lengths=tuple(len(row.tail_ids) for row in rows),
    )


def packed_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Split rows into batches that forward at most `tokens_per_batch` tokens; return their indices.

    Rows of one prompt stay together if they fit into one batch. Otherwise the group is split, and
    the prompt is forwarded once for each part. The largest groups go first, so that memory peaks in
    the first batch. A row above the limit gets its own batch.
    """
    tail_lengths = [len(row.tail_ids) - 1 for row in rows]  # forwarded tokens
    groups: list[tuple[int, list[int]]] = []  # (prompt length, rows)
    for prompt, members in by_prompt(rows).items():
        parts = _split_group(len(prompt), members, tail_lengths, tokens_per_batch)
        groups += [(len(prompt), part) for part in parts]
    groups.sort(key=lambda group: (-_group_tokens(*group, tail_lengths), group[1][0]))
    batches: list[list[int]] = []
    used = 0
    for prompt_length, members in groups:
        tokens = _group_tokens(prompt_length, members, tail_lengths)
        if batches and used + tokens <= tokens_per_batch:
            batches[-1] += members
            used += tokens
        else:
            batches.append(list(members))
            used = tokens
    return batches


def packed_tokens(rows: Sequence[Row]) -> int:
    """Return the tokens of rows that are forwarded together."""
    total = 0
    for prompt, members in by_prompt(rows).items():
        total += len(prompt) + sum(len(rows[i].tail_ids) - 1 for i in members)
    return total


def by_prompt(rows: Sequence[Row]) -> dict[tuple[int, ...], list[int]]:
    """Return the indices of the rows of each prompt, both in order of appearance."""
    members: dict[tuple[int, ...], list[int]] = {}
    for r, row in enumerate(rows):
        members.setdefault(row.prompt_ids, []).append(r)
    return members


def check_rows(rows: Sequence[Row]) -> None:
    """Raise InputError for a row without prompt or tail."""
    if not all(row.prompt_ids and row.tail_ids for row in rows):
        raise InputError(
            "a row needs a prompt token to predict from and a tail to predict; "
            "drop examples with an empty prompt or answer"
        )


def _split_group(
    prompt_length: int, members: Sequence[int], tail_lengths: Sequence[int], limit: int
) -> list[list[int]]:
    """Return the rows of one prompt in as few parts as fit the limit, in order."""
    parts: list[list[int]] = []
    for r in members:
        if parts and _group_tokens(prompt_length, [*parts[-1], r], tail_lengths) <= limit:
            parts[-1].append(r)
        else:
            parts.append([r])
    return parts


def _group_tokens(prompt_length: int, members: Sequence[int], tail_lengths: Sequence[int]) -> int:
    return prompt_length + sum(tail_lengths[r] for r in members)
