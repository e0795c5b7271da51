"""What some authors' own rules make of a group's rewards before they are normalised: format shares, penalties, verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.errors import InputError


@dataclass(frozen=True)
class Facts:
    """What a shape may know of a group besides its rewards."""

    finished_K: Tensor  # bool: the model itself wrote END, and ended its answer where it was asked for one
    written: tuple[tuple[int, ...], ...]  # the ids of K traces, END left out, each with its sampled answer if there is one
    correct_K: Tensor | None = None  # bool: a checker's verdict on the sampled answers


Shape = Callable[[Tensor, Facts], Tensor]
"""(rewards after the baseline's clip [K], facts) → final rewards [K], float64."""


def zero_unfinished(reward_K: Tensor, facts: Facts) -> Tensor:
    """VeriFree: a trace without its closing tag, or over length, has R = 0 (sail-sg/VeriFree)."""
    return torch.where(facts.finished_K, reward_K, 0.0)


def verdict(reward_K: Tensor, facts: Facts) -> Tensor:
    """RLVR: 1 if the sampled answer is right, else 0; the likelihood plays no part. Raises InputError without verdicts."""
    if facts.correct_K is None:
        raise InputError("rewards from verdicts need answers that were sampled and checked")
    return facts.correct_K.double()


def rlpr_final(gain_K: Tensor, facts: Facts) -> Tensor:
    """RLPR: 0.9·max(0, r − r′) + 0.1·format, less 1 where a 10-gram stands ten times or more.

    Source: OpenBMB/RLPR, verl/workers/reward_manager/prob.py, verl/utils/reward_score/repetition.py and reproduce_qwen.sh. As
    there, a reward of exactly 0 takes no penalty. Ours reads 10-grams of the response's tokens, theirs of its words; format is 1
    where the model closed both its trace and its answer.
    """
    final_K = 0.9 * gain_K + 0.1 * facts.finished_K.double()
    repetitive_K = torch.tensor([repeats(ids) for ids in facts.written])
    return torch.where(repetitive_K & (final_K != 0), final_K - 1.0, final_K)


def repeats(ids: Sequence[int], *, n: int = 10, times: int = 10) -> bool:
    """Whether some n-gram stands in `ids` at least `times` times.

    >>> repeats([7] * 19), repeats([7] * 18)  # 10 and 9 windows
    (True, False)
    """
    counts = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    return bool(counts) and max(counts.values()) >= times
