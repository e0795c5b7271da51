"""DROP: extract the text after "The answer is" and compute its F1 with the references.

Paper: Dua et al. 2019, arXiv 1903.00161.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lm_eval.tasks.drop import utils

from nrt.eval.tasks import Doc

REQUESTED_PHRASE = re.compile(r"The answer is (.*)")
OTHER_PHRASES = [re.compile(phrase, re.IGNORECASE) for phrase in ("answer is", "answer:")]
"""Fallbacks in order: the first phrase with text after its last occurrence is used."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the stated answer of every answer of every row (lm-eval filter)."""
    return [[stated_answer(answer) for answer in answers] for answers in responses]


def stated_answer(answer: str) -> str:
    """Return the rest of the line after "The answer is", else after a similar phrase, else "".

    >>> stated_answer("Both scored twice. The answer is <Adam>, <Bob>.")
    '<Adam>, <Bob>.'
    """
    matches = REQUESTED_PHRASE.findall(answer)
    if matches and matches[-1]:
        return matches[-1]
    for phrase in OTHER_PHRASES:
        *preceding, following = phrase.split(answer)
        line = following.strip().strip(".").split("\n", 1)[0]
        if preceding and line:
            return line
    return ""


def spans_of(text: str) -> list[str]:
    """Split a list of spans; only commas after ">" separate, so 1,024 stays one number.

    >>> spans_of("<Adam, of Rome>, <Bob>.")
    ['Adam, of Rome', 'Bob.']
    """
    return [re.sub(r"<([^<>]+)>", r"\1", span) for span in re.split(r"(?<=>)\s*,\s*", text)]


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute F1 and exact match with the best reference answer."""
    ((text,),) = results
    metrics = {"f1": 0.0, "em": 0.0}
    if text.strip():
        metrics = utils.process_results(doc, spans_of(text))
    return {"score": float(metrics["f1"]), "exact_match": float(metrics["em"])}
