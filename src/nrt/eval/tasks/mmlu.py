"""MMLU: extract the letter of an answer and grade it.

Paper: Hendrycks et al. 2021, arXiv 2009.03300.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nrt.eval.tasks import Doc

SEPARATORS = r"""(?:[\s:*_`"“'$]|\\[(\[]|\\[a-z]+\{)*"""
"""Text allowed between "answer is" and the answer: a colon, bold, quotes, LaTeX."""

NOT_ARTICLE = r"(?!\s+(?!(?:is|as|because|since)\b)[a-z])"
"""Lookahead after a capital A that is not the English article."""

NOT_JOINED = r"(?!['’-]\w)"
"""Lookahead after a letter that no apostrophe or hyphen joins to a word."""

LETTER_AFTER_PHRASE = rf"{SEPARATORS}\(?([A-Db-d]|a(?=[ \t]*(?:[.,;:)\]}}*]|$)))\b"
FIRST, LAST = 0, -1
RULES = [
    (re.compile(r"Therefore, the answer is \(([A-D])\)"), LAST),
    (
        re.compile(rf"(?i:therefore,?\s*the\s*answer\s*is){LETTER_AFTER_PHRASE}", re.MULTILINE),
        FIRST,
    ),
    (re.compile(rf"(?i:answer\s*is){LETTER_AFTER_PHRASE}", re.MULTILINE), FIRST),
    (re.compile(r"\b([A-Db-d]|(?<=\()a)[)*]*(?i:\s+is\s+correct)"), FIRST),
    (re.compile(r"\(([A-D])\)"), FIRST),
    (re.compile(rf"\b([B-D]|A{NOT_ARTICLE})\b{NOT_JOINED}"), LAST),
]
"""Extraction rules in order: the first rule that matches gives its first or its last letter."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the letter of every answer of every row (lm-eval filter)."""
    return [[letter_of(answer) for answer in answers] for answers in responses]


def letter_of(answer: str) -> str:
    """Return the letter of an answer, or "" if there is none.

    >>> letter_of("Not (A): it is odd. Therefore, the answer is (C).")
    'C'
    """
    for rule, position in RULES:
        letters = rule.findall(answer)
        if letters:
            return letters[position].upper()
    return ""


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare the letter with the row's."""
    ((letter,),) = results
    return {"score": float(letter == doc["answer"])}
