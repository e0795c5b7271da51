"""Records of a step: prompts with their sampled traces, scores and advantages under π_old.

`nrt.trainer.rollout_json` writes them to JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nrt.data import Markers, bare_row, sampled_answer_row, trace_row
from nrt.objective import NOISE, GroupCredit, GroupFacts, Method, RowCredit, group_credit
from nrt.types import Pair, Row, TailScores, Trace


@dataclass(frozen=True)
class SampledAnswer:
    """An answer that the policy sampled after a trace."""

    ids: tuple[int, ...]
    ended: bool  # the model ended it itself, under the cap
    correct: bool | None = None  # a checker's verdict, if there is a checker


@dataclass(frozen=True)
class SampledGroup:
    """One prompt and what the policy sampled after it, before scoring."""

    pair: Pair
    traces: tuple[Trace, ...]
    rows: tuple[Row, ...]  # each trace with the reference answer
    sampled_answers: tuple[SampledAnswer, ...]  # one a trace, if the method samples answers


@dataclass(frozen=True)
class BaselineScores:
    """Log-probabilities of one prompt that are scored apart from the trained rows.

    A field is None or empty if the run does not need it.
    """

    initial_T: Tensor | None  # y* in `x y*` under the initial model
    base_T: Tensor | None  # y* after the method's baseline, unless that is the policy's null trace
    reference: tuple[Tensor, ...]  # the rows' tails under the method's `trace_reference`
    # tails with y*, the null trace's last; for methods whose trained rows hold sampled answers
    answers: Sequence[TailScores]


@dataclass(frozen=True)
class Group:
    """One prompt, its K traces, and their scores and advantages under π_old.

    For SFT: no traces, one row `x y*`.
    """

    pair: Pair
    traces: tuple[Trace, ...]
    rows: tuple[Row, ...]  # the rows of the updates: K, or one for SFT
    logp: tuple[Tensor, ...]  # of each row's tail under π_old, float32 [tail]; empty for SFT
    entropy: tuple[Tensor, ...]  # at the same positions; empty for SFT
    credit: GroupCredit | None
    sampled_answers: tuple[SampledAnswer, ...] = ()  # one a trace, if the method samples answers
    off_policy: bool = False  # sampled under earlier weights: π_old is what the sampler reported
    noise: float = NOISE["float32"]  # see `GroupScores.noise`
    reference: tuple[Tensor, ...] = ()  # see `GroupScores.reference`
    # for metrics, not saved
    null_T: Tensor | None = None  # the answer's log-probabilities after the null trace [T]
    initial_T: Tensor | None = None  # the answer's in `x y*` under the initial model [T]

    @property
    def logp_KT(self) -> Tensor:
        """The reference answer's log-probabilities after each trace [K, T]."""
        return self._credit.logp_KT

    @property
    def advantage_K(self) -> Tensor:
        return self._credit.advantage_K

    @property
    def _credit(self) -> GroupCredit:
        if self.credit is None:
            raise ValueError("a group without a reward has no credit")
        return self.credit

    def row_credits(self) -> list[RowCredit]:
        """Return the credit of each row."""
        if self.credit is None:  # SFT has no π_old, advantage or null trace
            weights_T = torch.zeros(len(self.pair.answer_ids))
            return [RowCredit(0.0, weights_T, torch.zeros(len(row.tail_ids))) for row in self.rows]
        credit, token_advantages = self.credit, self._token_advantages()
        row_credits = []
        for k, (logp_N, row, trace) in enumerate(
            zip(self.logp, self.rows, self.traces, strict=True)
        ):
            reported_N = _reported_logp(logp_N, row, trace)
            row_credits.append(
                RowCredit(
                    advantage=credit.advantage_K[k].item(),
                    weights_T=credit.weights_T,
                    old_logp_N=reported_N if self.off_policy else logp_N,
                    reward=credit.final_K[k].item(),
                    sampler_logp_N=reported_N,
                    beats_null=bool(credit.beats_null_K[k]),
                    posterior=credit.posterior_K[k].item(),
                    token_advantage_N=token_advantages[k],
                )
            )
        return row_credits

    def _token_advantages(self) -> list[Tensor | None]:
        """Return the advantages of each row's tail [tail], 0 where the policy sampled nothing."""
        if self._credit.token_advantages is None:
            return [None] * len(self.rows)
        tails: list[Tensor | None] = []
        for row, values in zip(self.rows, self._credit.token_advantages, strict=True):
            tail_N = torch.zeros(len(row.tail_ids), dtype=torch.float64)
            tail_N[row.action_mask] = values
            tails.append(tail_N)
        return tails


@dataclass(frozen=True)
class Rollout:
    """The groups of one batch, in the order in which they were drawn."""

    groups: tuple[Group, ...]
    offsets: tuple[int, ...]  # places among the drawn prompts; 0, 1, 2, … if none was dropped
    drawn: int  # prompts taken from the stream
    metrics: Mapping[str, float] = field(default_factory=dict)
    statistics: Tensor | None = None  # for the method's state, over all groups drawn

    def split(self, parts: int) -> list[tuple[Group, ...]]:
        """Return equal mini-batches of prompts, in order."""
        size = len(self.groups) // parts
        return [self.groups[i * size : (i + 1) * size] for i in range(parts)]


@dataclass(frozen=True)
class GroupScores:
    """Scores of one prompt's K traces under π_old."""

    traces: tuple[Trace, ...]
    rows: tuple[tuple[Tensor, Tensor], ...]  # (log-prob, entropy) of the tails that updates forward
    logp_KT: Tensor  # the reference answer's log-probabilities after each trace
    base_T: Tensor  # and after the baseline
    sampled_answers: tuple[SampledAnswer, ...] = ()
    off_policy: bool = False  # see `Group.off_policy`
    noise: float = NOISE["float32"]  # rounding error of the scores, nats (`objective.NOISE`)
    # log-prob of the same tails under the method's `trace_reference`, up to the last sampled token
    # or longer; empty without one
    reference: tuple[Tensor, ...] = ()


def rows_to_train(
    pair: Pair,
    traces: Sequence[Trace],
    sampled_answers: Sequence[SampledAnswer],
    markers: Markers,
) -> tuple[Row, ...]:
    """Return the K rows that the updates forward.

    A row is a trace with the answer that the policy sampled, if it sampled any, else with the
    reference answer.
    """
    if not sampled_answers:
        return tuple(trace_row(pair, trace, markers) for trace in traces)
    return tuple(
        sampled_answer_row(pair, trace, answer.ids, markers)
        for trace, answer in zip(traces, sampled_answers, strict=True)
    )


def build_group(
    method: Method,
    pair: Pair,
    rows: tuple[Row, ...],
    scores: GroupScores,
    state: Tensor | None = None,
    *,
    null_T: Tensor | None = None,
    initial_T: Tensor | None = None,
) -> Group:
    """Return the group with its rewards and advantages.

    Args:
        rows: those of `rows_to_train`.
        state: the method's state when the rollout began.
        null_T, initial_T: see `Group`.
    """
    credit = group_credit(
        method,
        scores.logp_KT,
        scores.base_T,
        facts=_facts(scores, rows),
        state=state,
        noise=scores.noise,
    )
    logp, entropy = zip(*scores.rows, strict=True)
    return Group(
        pair=pair,
        traces=scores.traces,
        rows=rows,
        logp=logp,
        entropy=entropy,
        credit=credit,
        sampled_answers=scores.sampled_answers,
        off_policy=scores.off_policy,
        noise=scores.noise,
        reference=scores.reference,
        null_T=null_T,
        initial_T=initial_T,
    )


def sft_group(pair: Pair) -> Group:
    """Return the group of a method that samples nothing."""
    return Group(pair, (), (bare_row(pair),), (), (), None)


def _reported_logp(logp_N: Tensor, row: Row, trace: Trace) -> Tensor:
    """Return the tail's log-probabilities, with the sampler's own for the tokens it sampled."""
    if not trace.logps:
        return logp_N
    reported = logp_N.clone()
    reported[row.sampled_mask] = torch.tensor(trace.logps)
    return reported


def _facts(scores: GroupScores, rows: Sequence[Row]) -> GroupFacts:
    traces, answers = scores.traces, scores.sampled_answers
    finished = [trace.finished for trace in traces]
    truncated = [trace.capped for trace in traces]
    written = [trace.ids for trace in traces]
    for k, answer in enumerate(answers):
        finished[k] = finished[k] and answer.ended
        truncated[k] = truncated[k] or not answer.ended
        written[k] = (*written[k], *answer.ids)
    verdicts = [answer.correct for answer in answers if answer.correct is not None]
    return GroupFacts(
        finished_K=torch.tensor(finished),
        written=tuple(written),
        correct_K=torch.tensor(verdicts) if verdicts else None,
        trace_lengths_K=torch.tensor([len(trace.ids) for trace in traces]),
        truncated_K=torch.tensor(truncated),
        log_ratios=log_ratios([logp_N for logp_N, _ in scores.rows], scores.reference, rows),
    )


def log_ratios(
    logps: Sequence[Tensor], reference: Sequence[Tensor], rows: Sequence[Row]
) -> tuple[Tensor, ...]:
    """Return log π_old − log π_reference of each row's sampled tokens, float64, nats; none without
    a reference.

    Args:
        logps, reference: of the rows' tails; `reference` may end at the last sampled token.
    """
    if not reference:
        return ()
    ratios = []
    for logp_N, reference_N, row in zip(logps, reference, rows, strict=True):
        n = len(reference_N)
        ratios.append((logp_N[:n].double() - reference_N.double())[row.action_mask[:n]])
    return tuple(ratios)
