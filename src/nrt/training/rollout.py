"""A rollout: the groups of one batch, scored and credited under π_old. It can be written to JSON and read back exactly,
so that a run cut between two updates goes on with the very same traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt.data import Markers, bare_row, reply_row, trace_row
from nrt.objective import NOISE, Facts, GroupCredit, Method, RowCredit, group_credit
from nrt.types import Pair, Role, Row, Trace


@dataclass(frozen=True)
class Reply:
    """An answer that the policy sampled after a trace."""

    ids: tuple[int, ...]
    ended: bool  # the model ended it itself, under the cap
    correct: bool | None = None  # a checker's verdict, where there is a checker


@dataclass(frozen=True)
class Group:
    """One prompt, its K traces, and what π_old says of them. Without a reward (SFT): no traces, one row `x y*`."""

    pair: Pair
    traces: tuple[Trace, ...]
    rows: tuple[Row, ...]  # what the updates forward: K rows, or one for SFT
    logp: tuple[Tensor, ...]  # of each row's tail under π_old, float32 [tail]; empty for SFT
    entropy: tuple[Tensor, ...]  # the same positions' entropies; empty for SFT
    credit: GroupCredit | None
    replies: tuple[Reply, ...] = ()  # one a trace, for methods that sample answers
    behind: bool = False  # sampled under earlier weights: π_old of a sampled token is what the sampler reported
    noise: float = NOISE["float32"]  # see `GroupScores.noise`

    @property
    def logp_KT(self) -> Tensor:
        """The reference answer's log-probs given each trace [K, T]."""
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
        """What each row takes into the updates."""
        if self.credit is None:  # π_old, A and the null trace play no part: zeros stand for them
            return [RowCredit(0.0, torch.zeros(len(self.pair.answer_ids)), torch.zeros(len(row.tail_ids))) for row in self.rows]
        reported = [self._reported(*three) for three in zip(self.logp, self.rows, self.traces, strict=True)]
        old = reported if self.behind else self.logp
        numbers = zip(self.advantage_K.tolist(), old, self.credit.final_K.tolist(), reported, strict=True)
        return [RowCredit(advantage, self.credit.given_T, logp, final, said) for advantage, logp, final, said in numbers]

    @staticmethod
    def _reported(logp: Tensor, row: Row, trace: Trace) -> Tensor:
        """The tail's log-probs, but as the sampler reported them where it sampled."""
        if not trace.logps:
            return logp
        reported = logp.clone()
        reported[sampled_mask(row)] = torch.tensor(trace.logps)
        return reported


@dataclass(frozen=True)
class Rollout:
    """The groups of one batch, in the order in which they were drawn."""

    groups: tuple[Group, ...]
    offsets: tuple[int, ...]  # of each group among the prompts drawn: 0, 1, 2, … unless some were dropped
    drawn: int  # prompts taken from the stream
    metrics: Mapping[str, float] = field(default_factory=dict)
    statistics: Tensor | None = None  # for the method's memory, over all groups drawn

    def split(self, parts: int) -> list[tuple[Group, ...]]:
        """Equal mini-batches of prompts, in order."""
        size = len(self.groups) // parts
        return [self.groups[i * size : (i + 1) * size] for i in range(parts)]


@dataclass(frozen=True)
class GroupScores:
    """What π_old says of one prompt's K traces."""

    traces: tuple[Trace, ...]
    rows: tuple[tuple[Tensor, Tensor], ...]  # (log-prob, entropy) of the tails of the rows that updates forward
    logp_KT: Tensor  # the reference answer given each trace
    base_T: Tensor  # and given the baseline
    replies: tuple[Reply, ...] = ()
    behind: bool = False  # see `Group.behind`
    noise: float = NOISE["float32"]  # of the arithmetic that the scores come from (`objective.NOISE`)


def rows_of(pair: Pair, traces: Sequence[Trace], replies: Sequence[Reply], markers: Markers) -> tuple[Row, ...]:
    """The K rows that the updates forward: each trace with the answer that the policy wrote, or else with the reference."""
    if not replies:
        return tuple(trace_row(pair, trace, markers) for trace in traces)
    return tuple(reply_row(pair, trace, reply.ids, markers) for trace, reply in zip(traces, replies, strict=True))


def build_group(method: Method, pair: Pair, rows: tuple[Row, ...], scores: GroupScores, state: Tensor | None = None) -> Group:
    """The credited group; `rows` are those of `rows_of`, `state` is that of the method's memory when the rollout began."""
    credit = group_credit(method, scores.logp_KT, scores.base_T, facts=_facts(scores), state=state, noise=scores.noise)
    logp, entropy = zip(*scores.rows, strict=True)
    return Group(pair, scores.traces, rows, logp, entropy, credit, scores.replies, scores.behind, scores.noise)


def _facts(scores: GroupScores) -> Facts:
    if not scores.replies:
        return Facts(torch.tensor([trace.finished for trace in scores.traces]), tuple(trace.ids for trace in scores.traces))
    both = list(zip(scores.traces, scores.replies, strict=True))
    verdicts = [reply.correct for reply in scores.replies if reply.correct is not None]
    return Facts(
        finished_K=torch.tensor([trace.finished and reply.ended for trace, reply in both]),
        written=tuple((*trace.ids, *reply.ids) for trace, reply in both),
        correct_K=torch.tensor(verdicts) if verdicts else None,
    )


def sft_group(pair: Pair) -> Group:
    """The group of a method that samples nothing."""
    return Group(pair, (), (bare_row(pair),), (), (), None)


def sampled_mask(row: Row) -> Tensor:
    """bool [tail]: the trace's tokens that the policy itself chose."""
    sampled = [role == Role.TRACE or (role == Role.END and row.end_sampled) for role in row.tail_roles]
    return torch.tensor(sampled, dtype=torch.bool)


def to_json(rollout: Rollout) -> dict[str, Any]:
    """Numbers as Python floats, whose text form is exact for float32 and float64."""
    return {
        "metrics": dict(rollout.metrics),
        "offsets": rollout.offsets,
        "drawn": rollout.drawn,
        "statistics": None if rollout.statistics is None else rollout.statistics.tolist(),
        "groups": [group_to_json(group) for group in rollout.groups],
    }


def from_json(values: Mapping[str, Any], pairs: Sequence[Pair], method: Method, markers: Markers, state: Tensor | None = None) -> Rollout:
    """The rollout that `to_json` wrote; `pairs` are those of its groups. Credit is computed again from the same numbers."""
    groups = []
    for pair, group in zip(pairs, values["groups"], strict=True):
        if not group["traces"]:
            groups.append(sft_group(pair))
            continue
        scores = _scores_from_json(group)
        groups.append(build_group(method, pair, rows_of(pair, scores.traces, scores.replies, markers), scores, state))
    statistics = values["statistics"]
    return Rollout(
        groups=tuple(groups),
        offsets=tuple(values["offsets"]),
        drawn=values["drawn"],
        metrics=values["metrics"],
        statistics=None if statistics is None else torch.tensor(statistics, dtype=torch.float64),
    )


def group_to_json(group: Group) -> dict[str, Any]:
    """What π_old said of it; its pair is left out."""
    if group.credit is None:
        return {"traces": []}
    return {
        "traces": [
            {
                "ids": trace.ids,
                "finished": trace.finished,
                "logps": trace.logps,
                "version": trace.version,
                "end_token": trace.end_token,
            }
            for trace in group.traces
        ],
        "behind": group.behind,
        "noise": group.noise,
        "replies": [{"ids": reply.ids, "ended": reply.ended, "correct": reply.correct} for reply in group.replies],
        "logp": [logp.tolist() for logp in group.logp],
        "entropy": [entropy.tolist() for entropy in group.entropy],
        "answer": group.credit.logp_KT.tolist(),
        "base": group.credit.base_T.tolist(),
    }


def _trace_from_json(trace: Mapping[str, Any]) -> Trace:
    """Version 0.1 wrote neither the last field nor, at first, the one before it."""
    return Trace(
        ids=tuple(trace["ids"]),
        finished=trace["finished"],
        logps=tuple(trace["logps"]),
        version=trace.get("version"),
        end_token=trace.get("end_token", False),
    )


def _scores_from_json(group: Mapping[str, Any]) -> GroupScores:
    rows = zip(group["logp"], group["entropy"], strict=True)
    return GroupScores(
        traces=tuple(_trace_from_json(trace) for trace in group["traces"]),
        behind=group["behind"],
        noise=group.get("noise", NOISE["float32"]),
        rows=tuple((torch.tensor(logp), torch.tensor(entropy)) for logp, entropy in rows),
        logp_KT=torch.tensor(group["answer"]),
        base_T=torch.tensor(group["base"]),
        replies=tuple(Reply(tuple(reply["ids"]), reply["ended"], reply["correct"]) for reply in group["replies"]),
    )
