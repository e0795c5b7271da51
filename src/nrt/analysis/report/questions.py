"""Held-out questions, each with what every run made of it before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt.analysis.report.groups import Scaled, scaled
from nrt.analysis.report.loaded import Loaded
from nrt.analysis.report.sampling import spread, within_budget

MOST_QUESTIONS = 200
MOST_RECORDS = 1200
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Reply:
    """What a model made of a question. None: not recorded."""

    trace: str | None
    finished: bool | None
    answer: str | None
    correct: bool | None
    answer_null: str | None  # after the null trace
    correct_null: bool | None
    logp: float | None  # of the reference, nats per token
    logp_null: float | None
    tokens: list[str] | None  # the reference token by token
    token_logp: Scaled | None  # of each token
    token_logp_null: Scaled | None  # of each token after the null trace


@dataclass(frozen=True)
class Question:
    """A held-out question with the replies of each run: (before, after) by the run's place in the report."""

    id: str
    source: str
    question: str
    reference: str
    replies: dict[int, tuple[Reply | None, Reply | None]]


def read_questions(runs: Sequence[Loaded]) -> tuple[list[Question], int]:
    """The chosen questions, and how many there are. Questions of two runs are one if id, question and reference agree.

    Rule: at most 200, and no more than make 1,200 pairs of replies or 5 MB, at even distances in the order of the file; the first
    and the last always.
    """
    found: dict[tuple[str, str, str], dict[int, list[Mapping[str, Any] | None]]] = {}
    sources: dict[tuple[str, str, str], str] = {}
    for place, loaded in enumerate(runs):
        for when, records in enumerate((loaded.before, loaded.after)):
            for record in records:
                key = (str(record["id"]), record.get("question", ""), record.get("reference", ""))
                sources[key] = record.get("source") or ""
                found.setdefault(key, {}).setdefault(place, [None, None])[when] = record
    keys, most = list(found), max(2, min(MOST_QUESTIONS, MOST_RECORDS // max(1, len(runs))))
    chosen = [keys[i] for i in spread(len(keys), most)]
    questions = [
        Question(key[0], sources[key], key[1], key[2], {place: (_reply(a), _reply(b)) for place, (a, b) in found[key].items()})
        for key in chosen
    ]
    return within_budget(questions, MOST_BYTES), len(keys)


def _reply(record: Mapping[str, Any] | None) -> Reply | None:
    if record is None:
        return None
    return Reply(
        trace=record.get("trace"),
        finished=record.get("finished"),
        answer=record.get("answer"),
        correct=record.get("correct"),
        answer_null=record.get("answer_null"),
        correct_null=record.get("correct_null"),
        logp=_rounded(record.get("logp")),
        logp_null=_rounded(record.get("logp_null")),
        tokens=record.get("answer_tokens"),
        token_logp=_scaled(record.get("token_logp")),
        token_logp_null=_scaled(record.get("token_logp_null")),
    )


def _scaled(values: Sequence[float | None] | None) -> Scaled | None:
    return None if values is None else scaled(values, 1e5)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
