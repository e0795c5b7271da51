r"""MATH: extract the last \boxed of an answer and compare it with the solution's.

Paper: Hendrycks et al. 2021, arXiv 2103.03874.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from threading import current_thread, main_thread

from math_verify import parse, verify

from nrt.eval.tasks import Doc

BOX = re.compile(r"\\boxed\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # escaped braces do not count
SECONDS = 5
"""Time limit of math-verify for each parse and each comparison."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the last box of every answer of every row (lm-eval filter)."""
    return [[boxed(answer) for answer in answers] for answers in responses]


def boxed(text: str) -> str:
    r"""Return the content of the last box, or "" if there is none or its brace is not closed.

    Without braces, as in MATH's "$\boxed 2$", the content ends at the $.

    >>> boxed(r"First \boxed{1}, then \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return ""
    tail = text[boxes[-1].end() :]
    if not tail.startswith("{"):
        return re.split(r"[$\n]", tail, maxsplit=1)[0].strip()
    depth = 0
    for brace in BRACE.finditer(tail):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return tail[1 : brace.start()].strip()
    return ""


def equal(gold: str, answer: str) -> bool:
    r"""Return True if the contents of two boxes are equal.

    math-verify cannot parse all contents, so identical texts are equal without it. An alarm
    interrupts it after SECONDS. Python allows alarms only in the main thread; in other threads a
    tower such as 9^{9^{9^9}} never ends.
    """
    gold, answer = gold.rstrip("."), answer.rstrip(".")
    if not answer:
        return False
    if gold == answer:
        return True
    seconds = SECONDS if current_thread() is main_thread() else None
    parsed_gold, parsed_answer = (
        parse(f"\\boxed{{{box}}}", parsing_timeout=seconds)  # pyright: ignore[reportArgumentType]
        for box in (gold, answer)
    )
    return verify(parsed_gold, parsed_answer, timeout_seconds=seconds)


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare the answer's box with the solution's."""
    ((answer,),) = results
    return {"score": float(equal(boxed(doc["solution"]), answer))}
