"""DROP (Dua et al. 2019, arXiv 1903.00161): what an answer says after "The answer is", and its F1 with the golds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.tasks.drop import utils

Doc = Mapping[str, Any]

ASKED = re.compile(r"The answer is (.*)")
ALSO = [re.compile(phrase, re.IGNORECASE) for phrase in ("answer is", "answer:")]
"""The first that occurs with something after it, and of it the last."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: what every answer of every row says."""
    return [[said(answer) for answer in answers] for answers in responses]


def said(answer: str) -> str:
    """The rest of the line after "The answer is", else after a form of it; empty where there is neither.

    >>> said("Both scored twice. The answer is <Adam>, <Bob>.")
    '<Adam>, <Bob>.'
    """
    if (asked := ASKED.findall(answer)) and asked[-1]:
        return asked[-1]
    for phrase in ALSO:
        *before, rest = phrase.split(answer)
        if before and (line := rest.strip().strip(".").split("\n", 1)[0]):
            return line
    return ""


def spans_of(text: str) -> list[str]:
    """Commas divide after a ">" only: 1,024 is one number.

    >>> spans_of("<Adam, of Rome>, <Bob>.")
    ['Adam, of Rome', 'Bob.']
    """
    return [re.sub(r"<([^<>]+)>", r"\1", span) for span in re.split(r"(?<=>)\s*,\s*", text)]


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 and exact match with whichever gold is best."""
    ((text,),) = results
    found = utils.process_results(doc, spans_of(text)) if text.strip() else {"f1": 0.0, "em": 0.0}
    return {"score": float(found["f1"]), "exact_match": float(found["em"])}
