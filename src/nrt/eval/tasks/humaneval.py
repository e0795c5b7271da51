"""HumanEval (Chen et al. 2021, arXiv 2107.03374): the code out of an answer, and whether its tests pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sandbox import run_programs

Doc = Mapping[str, Any]

OPEN = r"```(?:[ \t]*[A-Za-z][\w+.-]*[ \t]*(?=\n))?\n*"
CLOSE, CLOSE_OR_END = r"\s*```", r"\s*(?:```|\Z)"
FENCES = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rf"Here is the completed function:\s*{OPEN}(.*?){CLOSE_OR_END}",
        rf"{OPEN}(.*?){CLOSE}",
        rf"{OPEN}(.*?){CLOSE_OR_END}",
    )
]
"""The first that occurs, and of it the last."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: the code of every answer of every row."""
    return [[code_of(answer) for answer in answers] for answers in responses]


def code_of(answer: str) -> str:
    """The block after "Here is the completed function:", else the last block, else the whole answer; its indentation is kept.

    >>> code_of("It adds.\\n\\nHere is the completed function:\\n\\n```python\\n    return a + b\\n```\\nDone.")
    '    return a + b'
    """
    for fence in FENCES:
        if blocks := fence.findall(answer):
            return blocks[-1]
    return answer


def program_of(doc: Doc, code: str) -> str:
    """The prompt comes first whatever the code is: it holds the imports and the helpers."""
    return f"{doc['prompt']}{code}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@10 and pass@1 of one row's samples; an answer without code fails unseen."""
    (codes,) = results
    outcomes = run_programs([program_of(doc, code) for code in codes if code.strip()])
    passed = sum(outcome.passed for outcome in outcomes)
    return {"score": pass_at_k(len(codes), passed, 10), "pass@1": pass_at_k(len(codes), passed, 1)}
