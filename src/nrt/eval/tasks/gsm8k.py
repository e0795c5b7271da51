"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): the last number of an answer, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]

COMMA = re.compile(r"(\d),(\d)")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # OLMES's: a sign belongs to a decimal number only


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: the last number of every answer of every row."""
    return [[number_of(answer) for answer in answers] for answers in responses]


def number_of(text: str) -> str:
    """The last number without its commas, empty where there is none.

    >>> number_of("2 bolts, so $1,450.50.")
    '1450.50'
    """
    numbers = NUMBER.findall(COMMA.sub(r"\1\2", text))
    return numbers[-1] if numbers else ""


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Whether the number is the one after the solution's "####"."""
    ((number,),) = results
    return {"score": float(bool(number) and number == number_of(doc["answer"].split("####")[-1]))}
