"""A rollout: the groups of one batch, scored and credited under π_old. It can be written to JSON and read back exactly,
so that a run cut between two updates goes on with the very same traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt.data import Markers, bare_row, trace_row
from nrt.objective import GroupCredit, Method, RowCredit, group_credit
from nrt.types import Pair, Role, Row, Trace


@dataclass(frozen=True)
class Group:
    """One prompt, its K traces, and what π_old says of them. Without a reward (SFT): no traces, one row `x y*`."""

    pair: Pair
    traces: tuple[Trace, ...]
    rows: tuple[Row, ...]  # what the updates forward: K rows, or one for SFT
    logp: tuple[Tensor, ...]  # of each row's tail under π_old, float32 [tail]; empty for SFT
    entropy: tuple[Tensor, ...]  # the same positions' entropies; empty for SFT
    credit: GroupCredit | None

    @property
    def logp_KT(self) -> Tensor:
        """The answer's log-probs given each trace [K, T]."""
        T = len(self.pair.answer_ids)
        return torch.stack([logp[-T:] for logp in self.logp])

    @property
    def advantage_K(self) -> Tensor:
        if self.credit is None:
            raise ValueError("a group without a reward has no advantages")
        return self.credit.advantage_K

    def row_credits(self) -> list[RowCredit]:
        """What each row takes into the updates."""
        if self.credit is None:  # π_old, A and the null trace play no part: zeros stand for them
            return [RowCredit(0.0, torch.zeros(len(self.pair.answer_ids)), torch.zeros(len(row.tail_ids))) for row in self.rows]
        return [
            RowCredit(advantage, self.credit.base_T, logp) for advantage, logp in zip(self.advantage_K.tolist(), self.logp, strict=True)
        ]


@dataclass(frozen=True)
class Rollout:
    """The groups of one batch, in the batch's order, and the metrics known once they are scored."""

    groups: tuple[Group, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def split(self, parts: int) -> list[tuple[Group, ...]]:
        """Equal mini-batches of prompts, in order."""
        size = len(self.groups) // parts
        return [self.groups[i * size : (i + 1) * size] for i in range(parts)]


def build_group(
    method: Method, markers: Markers, pair: Pair, traces: Sequence[Trace], scores: Sequence[tuple[Tensor, Tensor]], base_T: Tensor
) -> Group:
    """A credited group from the (log-prob, entropy) of its K rows and the null trace's answer log-probs [T]."""
    rows = tuple(trace_row(pair, trace, markers) for trace in traces)
    T = len(pair.answer_ids)
    logp_KT = torch.stack([logp[-T:] for logp, _ in scores])
    credit = group_credit(method, logp_KT, base_T)
    return Group(pair, tuple(traces), rows, tuple(s[0] for s in scores), tuple(s[1] for s in scores), credit)


def sft_group(pair: Pair) -> Group:
    """The group of a method that samples nothing."""
    return Group(pair, (), (bare_row(pair),), (), (), None)


def sampled_mask(row: Row) -> Tensor:
    """bool [tail]: the tokens that the policy itself chose."""
    sampled = [role == Role.TRACE or (role == Role.END and row.end_sampled) for role in row.tail_roles]
    return torch.tensor(sampled, dtype=torch.bool)


def to_json(rollout: Rollout) -> dict[str, Any]:
    """Numbers as Python floats, whose text form is exact for float32 and float64."""
    groups = [
        {
            "traces": [{"ids": trace.ids, "finished": trace.finished} for trace in group.traces],
            "logp": [logp.tolist() for logp in group.logp],
            "entropy": [entropy.tolist() for entropy in group.entropy],
            "base": group.credit.base_T.tolist() if group.credit else None,
        }
        for group in rollout.groups
    ]
    return {"metrics": dict(rollout.metrics), "groups": groups}


def from_json(values: Mapping[str, Any], pairs: Sequence[Pair], method: Method, markers: Markers) -> Rollout:
    """The rollout of `pairs` that `to_json` wrote; credit is computed again from the same numbers."""
    groups = []
    for pair, group in zip(pairs, values["groups"], strict=True):
        if group["base"] is None:
            groups.append(sft_group(pair))
            continue
        traces = [Trace(tuple(trace["ids"]), trace["finished"]) for trace in group["traces"]]
        scores = [(torch.tensor(logp), torch.tensor(entropy)) for logp, entropy in zip(group["logp"], group["entropy"], strict=True)]
        groups.append(build_group(method, markers, pair, traces, scores, torch.tensor(group["base"])))
    return Rollout(tuple(groups), values["metrics"])
