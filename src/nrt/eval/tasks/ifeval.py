"""IFEval: check that an answer follows its prompt's instructions, with lm-eval's checks.

strict   the answer unchanged
loose    any of its eight forms: without its first line, its last, both or neither, each with and
         without its asterisks

Paper: Zhou et al. 2023, arXiv 2311.07911.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sentences import ifeval_checks
from nrt.eval.tasks import Doc


def verdicts(doc: Doc, answer: str) -> tuple[list[bool], list[bool]]:
    """Return (strict, loose) verdicts per instruction. An empty answer follows no instruction.

    Raises InputError if a package that the checks need is missing.
    """
    checks = ifeval_checks()
    example = checks.InputExample(
        doc["key"], doc["instruction_id_list"], doc["prompt"], doc["kwargs"]
    )
    try:
        strict = checks.test_instruction_following_strict(example, answer)
        loose = checks.test_instruction_following_loose(example, answer)
    except RecursionError:  # from Python's json, for an answer with thousands of brackets
        none = [False] * len(example.instruction_id_list)
        return none, none
    return strict.follow_instruction_list, loose.follow_instruction_list


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Return the prompt's scores, and its instructions' verdicts as lists for `mean_of_all`."""
    strict, loose = verdicts(doc, results[0])
    return {
        "score": float(all(loose)),
        "prompt_strict": float(all(strict)),
        "inst_loose": loose,
        "inst_strict": strict,
    }


def mean_of_all(items: Sequence[Sequence[bool]]) -> float:
    """Return the mean over all instructions, with equal weights across prompts."""
    verdicts = [verdict for item in items for verdict in item]
    return sum(verdicts) / len(verdicts)


def keep_all(responses: Any, docs: Sequence[Doc]) -> Any:
    """Keep all answers of a row (lm-eval filter); the default keeps only the first."""
    return responses


def process_samples(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute pass@10 of one prompt's samples."""
    (answers,) = results
    passed = sum(all(verdicts(doc, answer)[1]) for answer in answers)
    return {"score": pass_at_k(len(answers), passed, 10)}
