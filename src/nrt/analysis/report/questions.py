"""Held-out questions with every run's replies before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt.analysis.report.groups import ScaledLogps, scale_to_int
from nrt.analysis.report.loaded_run import LoadedRun
from nrt.analysis.report.selection import evenly_spaced, within_budget

MAX_QUESTIONS = 200
MAX_REPLY_PAIRS = 1200
MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class HeldoutReply:
    """One reply of a model to a held-out question. A field is None if it was not recorded."""

    trace: str | None
    finished: bool | None
    answer: str | None
    correct: bool | None
    answer_null: str | None  # after the null trace
    correct_null: bool | None
    logp: float | None  # of the reference, nats per token
    logp_null: float | None
    tokens: list[str] | None  # the reference token by token
    token_logp: ScaledLogps | None  # of each token
    token_logp_null: ScaledLogps | None  # of each token after the null trace


@dataclass(frozen=True)
class HeldoutQuestion:
    """A held-out question with each run's replies: run index → (before, after)."""

    id: str
    source: str
    question: str
    reference: str
    replies: dict[int, tuple[HeldoutReply | None, HeldoutReply | None]]


def read_questions(runs: Sequence[LoadedRun]) -> tuple[list[HeldoutQuestion], int]:
    """Return the questions that a page holds, and the number of questions in the folders.

    Questions of two runs are the same if id, question and reference agree. A page holds at most
    MAX_QUESTIONS questions, at even distances in the order of the file, with at most
    MAX_REPLY_PAIRS pairs of replies and MAX_BYTES. The first and the last question are always
    among them.
    """
    records_of: dict[tuple[str, str, str], dict[int, list[Mapping[str, Any] | None]]] = {}
    sources: dict[tuple[str, str, str], str] = {}
    for run_index, run in enumerate(runs):
        for position, records in enumerate((run.initial_heldout, run.final_heldout)):
            for record in records:
                question, reference = record.get("question", ""), record.get("reference", "")
                key = (str(record["id"]), question, reference)
                sources[key] = record.get("source") or ""
                pairs = records_of.setdefault(key, {})
                pairs.setdefault(run_index, [None, None])[position] = record
    keys = list(records_of)
    limit = max(2, min(MAX_QUESTIONS, MAX_REPLY_PAIRS // max(1, len(runs))))
    questions = []
    for key in (keys[i] for i in evenly_spaced(len(keys), limit)):
        question_id, question, reference = key
        replies = {
            run_index: (_reply(before), _reply(after))
            for run_index, (before, after) in records_of[key].items()
        }
        questions.append(HeldoutQuestion(question_id, sources[key], question, reference, replies))
    return within_budget(questions, MAX_BYTES), len(keys)


def _reply(record: Mapping[str, Any] | None) -> HeldoutReply | None:
    if record is None:
        return None
    return HeldoutReply(
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


def _scaled(values: Sequence[float | None] | None) -> ScaledLogps | None:
    return None if values is None else scale_to_int(values, 1e5)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
