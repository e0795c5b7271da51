"""Changes that some authors make to a group's rewards before normalisation.

These are format shares, penalties, verdicts and ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.errors import InputError


@dataclass(frozen=True)
class GroupFacts:
    """Facts about a group's K traces that a shape may use besides the rewards."""

    # bool: the model itself wrote END, and ended its answer if the method sampled one
    finished_K: Tensor
    # ids of the K traces without END, each followed by its sampled answer if there is one
    written: tuple[tuple[int, ...], ...]
    correct_K: Tensor | None = None  # bool: a checker's verdicts on the sampled answers
    trace_lengths_K: Tensor | None = None  # tokens of the traces without END
    # log π_old − log π_reference of each trace's sampled tokens, nats, float64; empty for methods
    # without a `trace_reference`
    log_ratios: tuple[Tensor, ...] = ()
    # bool: the cap cut the trace, or the answer that the method sampled; None: it cut none
    truncated_K: Tensor | None = None


Shape = Callable[[Tensor, GroupFacts], Tensor]
"""(rewards after the baseline's clip [K], facts) → final rewards [K], float64."""


def zero_unfinished(reward_K: Tensor, facts: GroupFacts) -> Tensor:
    """Return VeriFree's rewards [K]: 0 for a trace without its closing tag or over length.

    Source: sail-sg/VeriFree.
    """
    return torch.where(facts.finished_K, reward_K, 0.0)


def verdict_reward(reward_K: Tensor, facts: GroupFacts) -> Tensor:
    """Return RLVR's rewards [K]: 1 if the sampled answer is correct, else 0.

    The likelihood `reward_K` is not used. Raises InputError without verdicts.
    """
    if facts.correct_K is None:
        raise InputError(
            "rewards from verdicts need sampled and checked answers: facts.correct_K is None; "
            "use them only in a method with samples_answers=True and checks_answers=True"
        )
    return facts.correct_K.double()


def rlpr_reward(gain_K: Tensor, facts: GroupFacts) -> Tensor:
    """Return RLPR's rewards [K]: 0.9·max(0, r − r′) + 0.1·format, less 1 for repetition.

    `gain_K` holds max(0, r − r′). Format is 1 if the model closed both its trace and its answer.
    Repetition means that some 10-gram occurs at least ten times. As in the source, a reward of
    exactly 0 gets no penalty. Deviation: this function counts 10-grams of the response's tokens,
    the source those of its words.

    Source: OpenBMB/RLPR, verl/workers/reward_manager/prob.py, verl/utils/reward_score/repetition.py
    and reproduce_qwen.sh.
    """
    final_K = 0.9 * gain_K + 0.1 * facts.finished_K.double()
    repetitive_K = torch.tensor([has_repeated_ngram(ids) for ids in facts.written])
    return torch.where(repetitive_K & (final_K != 0), final_K - 1.0, final_K)


def nover_reward(mean_logp_K: Tensor, facts: GroupFacts) -> Tensor:
    """Return NOVER's rewards [K]: 1 + rank + efficiency, and 0 without the format.

    `mean_logp_K` holds (1/T) Σ log c. A trace of Z tokens has the perplexity e^(nll), with
    nll = −mean_logp / max(1, 1 + log10 Z). Only traces of the format count: n that the model closed
    itself, with an answer that it ended itself.

    - rank: share of the n traces, itself included, whose perplexity is not lower
    - efficiency: share of the n − 1 others that are longer and have a higher perplexity

    Deviation: equal perplexities share the better rank; the source ranks them by their order.

    Source: thinkwee/NOVER, src/reward_functions.py and src/utils.py, all three weights 1.
    """
    if facts.trace_lengths_K is None:
        raise InputError("NOVER's rewards need the lengths of the traces; set trace_lengths_K")
    length_K, valid_K = facts.trace_lengths_K.double(), facts.finished_K
    norm_K = (1 + length_K.log10()).clamp(min=1.0)  # log10 of an empty trace is −inf
    nll_K = -mean_logp_K / norm_K
    counts_KK = valid_K[:, None] & valid_K[None, :]
    not_lower_KK = nll_K[None, :] >= nll_K[:, None]
    better_KK = (length_K[:, None] < length_K[None, :]) & (nll_K[:, None] < nll_K[None, :])
    n = int(valid_K.sum())
    rank_K = (not_lower_KK & counts_KK).double().sum(-1) / max(n, 1)
    efficiency_K = (better_KK & counts_KK).double().sum(-1) / max(n - 1, 1)
    return torch.where(valid_K, 1 + rank_K + efficiency_K, 0.0)


def latro_reward(log_prob_K: Tensor, facts: GroupFacts, *, beta: float = 0.05) -> Tensor:
    """Return LaTRO's rewards [K]: r − β·(log π(z) − log π_ref(z)) with r = Σ log c.

    A trace that the cap cut has r = 2·mean_j Σ log c_j in place of its own, a penalty because the
    mean is negative. Deviation: the mean is over the group, the source's over a device's batch.

    Source: SalesforceAIResearch/LaTRO, latro_trainer.py, kl_coef 0.05 and non_stop_penalty.
    """
    log_ratio_K = torch.stack([ratios.sum() for ratios in _log_ratios(facts)])
    if facts.truncated_K is not None:
        log_prob_K = torch.where(facts.truncated_K, 2 * log_prob_K.mean(), log_prob_K)
    return log_prob_K - beta * log_ratio_K


def teacher_gap(_: Tensor, facts: GroupFacts) -> Tensor:
    """Return the mean token advantage of each trace [K], for metrics.

    A token's advantage is log π_teacher − log π_old. The likelihood of the answer is not used.
    """
    gaps = [-ratios.mean() if len(ratios) else ratios.sum() for ratios in _log_ratios(facts)]
    return torch.stack(gaps)


def _log_ratios(facts: GroupFacts) -> tuple[Tensor, ...]:
    """Return the group's log-ratios. Raises InputError if no second policy scored the traces."""
    if not facts.log_ratios:
        raise InputError(
            "rewards from a second policy need facts.log_ratios; use them only in a method with a "
            "trace_reference"
        )
    return facts.log_ratios


def has_repeated_ngram(ids: Sequence[int], *, n: int = 10, times: int = 10) -> bool:
    """Return True if some n-gram occurs in `ids` at least `times` times.

    >>> has_repeated_ngram([7] * 19), has_repeated_ngram([7] * 18)  # 10 and 9 windows
    (True, False)
    """
    counts = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    return bool(counts) and max(counts.values()) >= times
