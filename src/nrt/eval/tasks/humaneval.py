"""HumanEval (Chen et al. 2021, arXiv 2107.03374): the code out of an answer, and whether its tests pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sandbox import Program, run_programs

Doc = Mapping[str, Any]

ASKED = re.compile(r"Here is the completed function:\s*```")
FENCE = re.compile("```")
LANGUAGE = re.compile(r"(?:[ \t]*[A-Za-z][\w+.-]*[ \t]*(?=\n))?\n*")
"""After the opening fence: a language, if the rest of the line holds nothing else, and line breaks."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter: the code of every answer of every row."""
    return [[code_of(answer) for answer in answers] for answers in responses]


def code_of(answer: str) -> str:
    """The block after "Here is the completed function:", else the last block, else the whole answer; its indentation is kept.

    >>> code_of("It adds.\\n\\nHere is the completed function:\\n\\n```python\\n    return a + b\\n```\\nDone.")
    '    return a + b'
    """
    blocks = blocks_after(ASKED, answer) or blocks_after(FENCE, answer, closed=True) or blocks_after(FENCE, answer)
    return blocks[-1] if blocks else answer


def blocks_after(opening: re.Pattern[str], answer: str, *, closed: bool = False) -> list[str]:
    """The blocks that begin with `opening`, each up to the next fence, or to the end of the answer unless they must be `closed`.

    A scan in linear time: as one regular expression it took half a minute for a program of 4,000 empty lines.
    """
    blocks, at = [], 0
    while found := opening.search(answer, at):
        begin = LANGUAGE.match(answer, found.end()).end()  # pyright: ignore[reportOptionalMemberAccess]  # it matches nothing, too
        end = answer.find("```", begin)
        if end < 0:
            if not closed:
                blocks.append(answer[begin:].rstrip())
            break
        blocks.append(answer[begin:end].rstrip())
        at = end + 3
    return blocks


def program_of(doc: Doc, code: str) -> Program:
    """The prompt comes first whatever the code is: it holds the imports and the helpers, which the test uses, too."""
    return Program(f"{doc['prompt']}{code}\n", doc["entry_point"], setup=doc["prompt"], test=doc["test"])


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@10 and pass@1 of one row's samples; an answer without code fails unseen."""
    (codes,) = results
    outcomes = run_programs([program_of(doc, code) for code in codes if code.strip()])
    passed = sum(outcome.passed for outcome in outcomes)
    return {"score": pass_at_k(len(codes), passed, 10), "pass@1": pass_at_k(len(codes), passed, 1)}
