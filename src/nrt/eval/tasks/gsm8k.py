"""GSM8K: extract the last number of an answer and grade it.

Paper: Cobbe et al. 2021, arXiv 2110.14168.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nrt.eval.tasks import Doc

COMMA = re.compile(r"(\d),(\d)")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # OLMES: only decimal numbers have a sign


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the last number of every answer of every row (lm-eval filter)."""
    return [[number_of(answer) for answer in answers] for answers in responses]


def number_of(text: str) -> str:
    """Return the last number without its commas, or "" if there is none.

    >>> number_of("2 bolts, so $1,450.50.")
    '1450.50'
    """
    numbers = NUMBER.findall(COMMA.sub(r"\1\2", text))
    return numbers[-1] if numbers else ""


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare the number with the one after "####" in the solution."""
    ((number,),) = results
    return {"score": float(bool(number) and number == number_of(doc["answer"].split("####")[-1]))}
