"""Rows that share a prompt, packed without padding: the prompt is forwarded once, and each tail after it sees it and itself.

rows      x x x │ a a a a      x x x │ b b b      y y │ c c c        tails predict one token more than they forward: the last
packed    x x x a a a b b y y c c                                    tail token is predicted, but predicts nothing
position  0 1 2 3 4 5 3 4 0 1 2 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nrt.errors import InputError
from nrt.types import Role, Row


@dataclass(frozen=True)
class Group:
    """Where one prompt and its tails stand, as half-open ranges; tails follow the prompt and one another."""

    prompt: tuple[int, int]
    tails: tuple[tuple[int, int], ...]  # none of them empty

    @property
    def stop(self) -> int:
        return self.tails[-1][1] if self.tails else self.prompt[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        prompt = self.prompt[1] - self.prompt[0]
        return prompt + max((stop - start for start, stop in self.tails), default=0)


@dataclass(frozen=True)
class Layout:
    """N tokens to forward, and which of their hidden states predict the M tail tokens."""

    ids_N: Tensor
    positions_N: Tensor
    groups: tuple[Group, ...]
    from_M: Tensor  # the place whose hidden state predicts each tail token, in the order of the rows given
    target_M: Tensor  # ids of the tail tokens
    banned_M: Tensor | None  # a token that may not stand at each place, or −1; None: there is none in any row
    lengths: tuple[int, ...]  # tail tokens of each row

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: no query is further than that from a key."""
        return max(group.longest for group in self.groups)


def banned_tokens(rows: Sequence[Row], device: torch.device | str) -> Tensor | None:
    """For each tail token of packed rows, a token that has probability 0 in its place, or −1; None where no row has any.

    START opens a trace and is no action inside it: the policy over traces and END is the softmax over all other tokens, and samplers
    never draw it. Where a trace holds START all the same (sampled by an engine that cannot leave it out), it keeps its probability.
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


def lay_out(rows: Sequence[Row], device: torch.device | str = "cpu", *, ban_start: bool = True) -> Layout:
    """The layout of the rows; those with equal prompts form a group. Raises InputError for a row without prompt or tail.

    `ban_start`: see `banned_tokens`.
    """
    check_rows(rows)
    ids: list[int] = []
    positions: list[int] = []
    groups: list[Group] = []
    places: list[list[int]] = [[] for _ in rows]
    for prompt, members in by_prompt(rows).items():
        begin = len(ids)
        ids += prompt
        positions += range(len(prompt))
        last = len(ids) - 1
        ends = [len(ids)]
        for r in members:
            forwarded = rows[r].tail_ids[:-1]
            places[r] = [last, *range(len(ids), len(ids) + len(forwarded))]
            ids += forwarded
            positions += range(len(prompt), len(prompt) + len(forwarded))
            ends.append(len(ids))
        groups.append(Group((begin, last + 1), tuple((a, b) for a, b in pairwise(ends) if a < b)))
    return Layout(
        ids_N=torch.tensor(ids, device=device),
        positions_N=torch.tensor(positions, device=device),
        groups=tuple(groups),
        from_M=torch.tensor([place for row in places for place in row], device=device),
        target_M=torch.tensor([token for row in rows for token in row.tail_ids], device=device),
        banned_M=banned_tokens(rows, device) if ban_start else None,
        lengths=tuple(len(row.tail_ids) for row in rows),
    )


def packed_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Splits rows into batches that forward at most `tokens_per_batch` tokens; returns indices into `rows`.

    Rows of one prompt stay together where they fit into one batch; otherwise the prompt is forwarded once for each part. The largest
    groups go first, so that memory peaks in the first batch. A row over the limit is a batch of its own.
    """
    groups = [(len(prompt), members) for prompt, members in by_prompt(rows).items()]
    tail = [len(row.tail_ids) - 1 for row in rows]
    groups = [(size, part) for size, members in groups for part in _parts(size, members, tail, tokens_per_batch)]
    groups.sort(key=lambda group: (-_tokens(*group, tail), group[1][0]))
    batches: list[list[int]] = []
    used = 0
    for size, members in groups:
        tokens = _tokens(size, members, tail)
        if batches and used + tokens <= tokens_per_batch:
            batches[-1] += members
            used += tokens
        else:
            batches.append(list(members))
            used = tokens
    return batches


def by_prompt(rows: Sequence[Row]) -> dict[tuple[int, ...], list[int]]:
    """Indices of the rows of each prompt, both in order of appearance."""
    members: dict[tuple[int, ...], list[int]] = {}
    for r, row in enumerate(rows):
        members.setdefault(row.prompt_ids, []).append(r)
    return members


def check_rows(rows: Sequence[Row]) -> None:
    """Raises InputError for a row without prompt or tail."""
    if not all(row.prompt_ids and row.tail_ids for row in rows):
        raise InputError("a row needs a prompt token to predict from and a tail to predict; drop examples with an empty prompt or answer")


def _parts(prompt: int, members: Sequence[int], tail: Sequence[int], limit: int) -> list[list[int]]:
    """One part if it fits, else as many as there must be, in order."""
    parts: list[list[int]] = []
    for r in members:
        if parts and _tokens(prompt, [*parts[-1], r], tail) <= limit:
            parts[-1].append(r)
        else:
            parts.append([r])
    return parts


def _tokens(prompt: int, members: Sequence[int], tail: Sequence[int]) -> int:
    return prompt + sum(tail[r] for r in members)
