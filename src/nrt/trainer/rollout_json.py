"""A rollout as JSON, exact: a run that stops between two updates resumes with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nrt.data import Markers
from nrt.objective import NOISE, Method
from nrt.trainer.groups import (
    Group,
    GroupScores,
    Rollout,
    SampledAnswer,
    build_group,
    rows_to_train,
    sft_group,
)
from nrt.types import Pair, Trace


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Return the rollout as JSON values, without its pairs.

    Numbers become Python floats, whose text form is exact for float32 and float64.
    """
    return {
        "metrics": dict(rollout.metrics),
        "offsets": rollout.offsets,
        "drawn": rollout.drawn,
        "statistics": None if rollout.statistics is None else rollout.statistics.tolist(),
        "groups": [group_to_json(group) for group in rollout.groups],
    }


def rollout_from_json(
    values: Mapping[str, Any],
    pairs: Sequence[Pair],
    method: Method,
    markers: Markers,
    state: Tensor | None = None,
) -> Rollout:
    """Return the rollout that `rollout_to_json` wrote.

    Credit is computed again from the same numbers.

    Args:
        pairs: the pair of each group.
        state: the method's state when the rollout began.
    """
    groups = []
    for pair, group_values in zip(pairs, values["groups"], strict=True):
        if not group_values["traces"]:
            groups.append(sft_group(pair))
            continue
        scores = _scores_from_json(group_values)
        rows = rows_to_train(pair, scores.traces, scores.sampled_answers, markers)
        groups.append(build_group(method, pair, rows, scores, state))
    statistics = values["statistics"]
    return Rollout(
        groups=tuple(groups),
        offsets=tuple(values["offsets"]),
        drawn=values["drawn"],
        metrics=values["metrics"],
        statistics=None if statistics is None else torch.tensor(statistics, dtype=torch.float64),
    )


def group_to_json(group: Group) -> dict[str, Any]:
    """Return the group's traces and scores as JSON values, without its pair."""
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
                "temperature": trace.temperature,
            }
            for trace in group.traces
        ],
        "behind": group.off_policy,
        "noise": group.noise,
        "replies": [
            {"ids": answer.ids, "ended": answer.ended, "correct": answer.correct}
            for answer in group.sampled_answers
        ],
        "logp": [logp.tolist() for logp in group.logp],
        "entropy": [entropy.tolist() for entropy in group.entropy],
        "answer": group.credit.logp_KT.tolist(),
        "base": group.credit.base_T.tolist(),
        "reference": [logp.tolist() for logp in group.reference],
    }


def _trace_from_json(values: Mapping[str, Any]) -> Trace:
    """Return a trace. Version 0.1 wrote no `temperature`, no `end_token` and, at first, no
    `version`.
    """
    return Trace(
        ids=tuple(values["ids"]),
        finished=values["finished"],
        logps=tuple(values["logps"]),
        version=values.get("version"),
        end_token=values.get("end_token", False),
        temperature=values.get("temperature", 1.0),
    )


def _scores_from_json(values: Mapping[str, Any]) -> GroupScores:
    rows = zip(values["logp"], values["entropy"], strict=True)
    answers = [
        SampledAnswer(tuple(answer["ids"]), answer["ended"], answer["correct"])
        for answer in values["replies"]
    ]
    return GroupScores(
        traces=tuple(_trace_from_json(trace) for trace in values["traces"]),
        off_policy=values["behind"],
        noise=values.get("noise", NOISE["float32"]),
        rows=tuple((torch.tensor(logp), torch.tensor(entropy)) for logp, entropy in rows),
        logp_KT=torch.tensor(values["answer"]),
        base_T=torch.tensor(values["base"]),
        sampled_answers=tuple(answers),
        reference=tuple(torch.tensor(logp) for logp in values.get("reference", [])),
    )
