"""HumanEval: extract the code of an answer and run its tests.

Paper: Chen et al. 2021, arXiv 2107.03374.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sandbox import ModelProgram, run_programs
from nrt.eval.tasks import Doc

REQUESTED_OPENING = re.compile(r"Here is the completed function:\s*```")
FENCE = re.compile("```")
LANGUAGE = re.compile(r"(?:[ \t]*[A-Za-z][\w+.-]*[ \t]*(?=\n))?\n*")
"""Text after the opening fence: a language, if it is alone on the line, and line breaks."""


def extract(responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the code of every answer of every row (lm-eval filter)."""
    return [[code_of(answer) for answer in answers] for answers in responses]


def code_of(answer: str) -> str:
    """Return the code in an answer with its indentation.

    It is the last block after "Here is the completed function:", else the last block, else the
    whole answer.

    >>> code_of("Here is the completed function:\\n\\n```python\\n    return a + b\\n```\\nDone.")
    '    return a + b'
    """
    blocks = (
        blocks_after(REQUESTED_OPENING, answer)
        or blocks_after(FENCE, answer, closed=True)
        or blocks_after(FENCE, answer)
    )
    return blocks[-1] if blocks else answer


def blocks_after(opening: re.Pattern[str], answer: str, *, closed: bool = False) -> list[str]:
    """Return the blocks that start with `opening` and end at the next fence.

    The last block may end with the answer unless blocks must be `closed`. The scan takes linear
    time: one regular expression took half a minute for a program of 4,000 empty lines.
    """
    blocks, position = [], 0
    while match := opening.search(answer, position):
        language = LANGUAGE.match(answer, match.end())  # never None: it also matches the empty text
        begin = language.end()  # pyright: ignore[reportOptionalMemberAccess]
        end = answer.find("```", begin)
        if end < 0:
            if not closed:
                blocks.append(answer[begin:].rstrip())
            break
        blocks.append(answer[begin:end].rstrip())
        position = end + 3
    return blocks


def program_of(doc: Doc, code: str) -> ModelProgram:
    """Prepend the prompt to any code: it holds imports and helpers, which the test also uses."""
    return ModelProgram(
        f"{doc['prompt']}{code}\n", doc["entry_point"], setup=doc["prompt"], test=doc["test"]
    )


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute pass@10 and pass@1 of one row's samples; answers without code fail without a run."""
    (codes,) = results
    outcomes = run_programs([program_of(doc, code) for code in codes if code.strip()])
    passed = sum(outcome.passed for outcome in outcomes)
    return {"score": pass_at_k(len(codes), passed, 10), "pass@1": pass_at_k(len(codes), passed, 1)}
