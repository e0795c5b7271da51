"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): the letter out of an answer, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]

MARKS = r"""(?:[\s:*_`"“'$]|\\[(\[]|\\[a-z]+\{)*"""
"""What may stand between "answer is" and the answer: a colon, bold, quotes, LaTeX."""

NO_ARTICLE = r"(?!\s+(?!(?:is|as|because|since)\b)[a-z])"
"""After a capital A that is no English article."""

UNJOINED = r"(?!['’-]\w)"

SAID = rf"{MARKS}\(?([A-Db-d]|a(?=[ \t]*(?:[.,;:)\]}}*]|$)))\b"
FIRST, LAST = 0, -1
RULES = [
    (re.compile(r"Therefore, the answer is \(([A-D])\)"), LAST),
    (re.compile(rf"(?i:therefore,?\s*the\s*answer\s*is){SAID}", re.MULTILINE), FIRST),
    (re.compile(rf"(?i:answer\s*is){SAID}", re.MULTILINE), FIRST),
    (re.compile(r"\b([A-Db-d]|(?<=\()a)[)*]*(?i:\s+is\s+correct)"), FIRST),
    (re.compile(r"\(([A-D])\)"), FIRST),
    (re.compile(rf"\b([B-D]|A{NO_ARTICLE})\b{UNJOINED}"), LAST),
]
"""The first that matches, and of its matches the one named."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: the letter of every answer of every row."""
    return [[letter_of(answer) for answer in answers] for answers in responses]


def letter_of(answer: str) -> str:
    """Empty where there is none.

    >>> letter_of("Not (A): it is odd. Therefore, the answer is (C).")
    'C'
    """
    for rule, which in RULES:
        if found := rule.findall(answer):
            return found[which].upper()
    return ""


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    ((letter,),) = results
    return {"score": float(letter == doc["answer"])}
