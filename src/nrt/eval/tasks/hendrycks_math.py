r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): what stands in an answer's last \boxed, and whether it equals the solution's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from threading import current_thread, main_thread
from typing import Any

from math_verify import parse, verify

Doc = Mapping[str, Any]

BOX = re.compile(r"\\boxed\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
SECONDS = 5


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: the last box of every answer of every row."""
    return [[boxed(answer) for answer in answers] for answers in responses]


def boxed(text: str) -> str:
    r"""What the last box holds, empty where there is none or it is left open. Without braces, as in MATH's "$\boxed 2$", up to the $.

    >>> boxed(r"First \boxed{1}, then \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return ""
    rest = text[boxes[-1].end() :]
    if not rest.startswith("{"):
        return re.split(r"[$\n]", rest, maxsplit=1)[0].strip()
    depth = 0
    for brace in BRACE.finditer(rest):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return rest[1 : brace.start()].strip()
    return ""


def equal(gold: str, answer: str) -> bool:
    r"""Two boxes' contents; math-verify cannot read all of them.

    It is interrupted by an alarm, which Python lets the main thread alone set: elsewhere a tower like 9^{9^{9^9}} goes on for ever.
    """
    gold, answer = gold.rstrip("."), answer.rstrip(".")
    if not answer:
        return False
    if gold == answer:
        return True
    seconds = SECONDS if current_thread() is main_thread() else None
    gold_read, answer_read = (parse(f"\\boxed{{{box}}}", parsing_timeout=seconds) for box in (gold, answer))  # pyright: ignore[reportArgumentType]
    return verify(gold_read, answer_read, timeout_seconds=seconds)


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Whether the answer's box equals the solution's."""
    ((answer,),) = results
    return {"score": float(equal(boxed(doc["solution"]), answer))}
