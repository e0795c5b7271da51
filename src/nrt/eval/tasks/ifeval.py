"""IFEval (Zhou et al. 2023, arXiv 2311.07911): whether an answer follows its prompt's instructions, by lm-eval's own checks.

strict   the answer as it is
loose    one of eight forms of it: without its first line, its last, both or neither, each with and without its asterisks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sentences import ifeval_checks

Doc = Mapping[str, Any]


def verdicts(doc: Doc, answer: str) -> tuple[list[bool], list[bool]]:
    """(strict, loose), one verdict an instruction. An empty answer follows none.

    Raises InputError where a package that the checks need is missing.
    """
    checks = ifeval_checks()
    given = checks.InputExample(doc["key"], doc["instruction_id_list"], doc["prompt"], doc["kwargs"])
    try:
        strict = checks.test_instruction_following_strict(given, answer)
        loose = checks.test_instruction_following_loose(given, answer)
    except RecursionError:  # Python's json, of thousands of brackets
        none = [False] * len(given.instruction_id_list)
        return none, none
    return strict.follow_instruction_list, loose.follow_instruction_list


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """The prompt's score and, as lists for `mean_of_all`, those of its instructions."""
    strict, loose = verdicts(doc, results[0])
    return {"score": float(all(loose)), "prompt_strict": float(all(strict)), "inst_loose": loose, "inst_strict": strict}


def mean_of_all(items: Sequence[Sequence[bool]]) -> float:
    """Each instruction counts the same, whichever prompt it stands in."""
    verdicts = [verdict for item in items for verdict in item]
    return sum(verdicts) / len(verdicts)


def keep_all(responses: Any, docs: Sequence[Doc]) -> Any:
    """lm-eval's filter: by default it keeps a row's first answer only."""
    return responses


def process_samples(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@10 of one prompt's samples."""
    (answers,) = results
    passed = sum(all(verdicts(doc, answer)[1]) for answer in answers)
    return {"score": pass_at_k(len(answers), passed, 10)}
