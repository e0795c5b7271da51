"""HumanEval: the prompt, the code that is found in an answer, the estimator, and the benchmark's own solutions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import apply_template

from nrt.eval.pass_at_k import pass_at_k
from nrt.eval.sandbox import run_programs
from nrt.eval.tasks import humaneval
from nrt.eval.tasks.humaneval import code_of, extract, process_results, program_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
CONFIG = load_yaml(Path(humaneval.__file__).with_suffix(".yaml"), resolve_func=False)

PROMPT = '''from math import floor


def half(x):
    """Half of x, rounded down."""
    return floor(x / 2)


def quarter(x):
    """A quarter of x, rounded down.
    >>> quarter(9)
    2
    """
'''
DOC: dict[str, Any] = {
    "prompt": PROMPT,
    "entry_point": "quarter",
    "test": """

METADATA = {}


def check(candidate):
    assert candidate(9) == 2
    assert candidate(-1) == -1
    assert candidate(3) == 0
""",
}

SAID = "Here is the completed function:\n\n"
RIGHT = "def quarter(x):\n    return x // 4"
WRONG = "def quarter(x):\n    return x / 4"

ANSWERS = {
    "as asked": (f"Divide by four.\n\n{SAID}```python\n{RIGHT}\n```", True),
    "as asked, but wrong": (f"Divide by four.\n\n{SAID}```python\n{WRONG}\n```", False),
    "words after the fence": (
        f"{SAID}```python\n{RIGHT}\n```\n\nIt rounds down, as `//` does.",
        True,
    ),
    "a fence without a language": (f"{SAID}```\n{RIGHT}\n```", True),
    "a fence of another spelling": (f"{SAID}```Python3\n{RIGHT}\n```", True),
    "a fence with a space": (f"{SAID}``` py\n{RIGHT}\n```", True),
    "no blank line before the fence": (
        f"Here is the completed function:\n```python\n{RIGHT}\n```",
        True,
    ),
    "the fence alone": (f"```python\n{RIGHT}\n```", True),
    "a fence on one line": ("```def quarter(x): return x // 4```", True),
    "a draft, then the answer": (
        f"```python\n{WRONG}\n```\nNo: it has to round.\n\n{SAID}```python\n{RIGHT}\n```",
        True,
    ),
    "the answer, then a use of it": (
        f"{SAID}```python\n{RIGHT}\n```\n\nFor instance:\n\n```python\nassert quarter(9) == 7\n```",
        True,
    ),
    "two fences, the last is right": (f"```python\n{WRONG}\n```\n\n```python\n{RIGHT}\n```", True),
    "two fences, the last is wrong": (f"```python\n{RIGHT}\n```\n\n```python\n{WRONG}\n```", False),
    "said twice, the last is right": (
        f"{SAID}```python\n{WRONG}\n```\n{SAID}```python\n{RIGHT}\n```",
        True,
    ),
    "said again after the end of the trace": (
        f"{SAID}```python\n{WRONG}\n```<|think_end|>{SAID}```python\n{RIGHT}\n```",
        True,
    ),
    "said again, twice after the end": (
        f"{SAID}```python\n{RIGHT}\n```<|think_end|><|think_end|>{SAID}```python\n{WRONG}\n```",
        False,
    ),
    "a fence left open": (f"{SAID}```python\n{RIGHT}\n", True),
    "a fence left open in the middle of a line": (f"{SAID}```python\n{RIGHT} if (", False),
    "a fence left open after a closed draft": (
        f"```python\n{WRONG}\n```\n{SAID}```python\n{RIGHT}",
        True,
    ),
    "the body alone, in a fence": (f"{SAID}```python\n    return x // 4\n```", True),
    "the body alone": ("    return x // 4\n", True),
    "the body alone, with helpers after it": (
        "    return part(x)\n\n\ndef part(x):\n    return x // 4\n",
        True,
    ),
    "the body without its indentation": ("return x // 4", False),
    "the body without its indentation, in a fence": ("```python\nreturn x // 4\n```", False),
    "the function alone": (RIGHT, True),
    "the function and words": (f"{RIGHT}\n\nThis divides by four.", False),
    "words alone": ("I would divide by four.", False),
    "words and the body": ("The body is:\n    return x // 4", False),
    "the prompt's import and helper": ("    return half(half(x)) + floor(0.5)", True),
    "an import of its own": (
        f"{SAID}```python\nimport math\n\ndef quarter(x):\n    return math.floor(x / 4)\n```",
        True,
    ),
    "a whole program that ends itself": (
        f"{SAID}```python\n{RIGHT}\n\nraise SystemExit(0)\n```",
        False,
    ),
    "a main part": (
        f"{SAID}```python\n{RIGHT}\n\nif __name__ == '__main__':\n    print(quarter(int(input())))\n```",
        True,
    ),
    "a check of its own": (
        f"{SAID}```python\n{WRONG}\n\ndef check(candidate):\n    pass\n```",
        False,
    ),
    "another name": (f"{SAID}```python\ndef fourth(x):\n    return x // 4\n```", False),
    "a fence with nothing": (f"{SAID}```python\n```", False),
    "nothing but pass": (f"{SAID}```python\n    pass\n```", False),
    "nothing": ("", False),
    "white space": (" \n\n", False),
    "a null byte": (f"{SAID}```python\n{RIGHT}\n\0```", False),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, bool]:
    """One run of all programs."""
    programs = [program_of(DOC, code_of(answer)) for answer, _ in ANSWERS.values()]
    return dict(zip(ANSWERS, (outcome.passed for outcome in run_programs(programs)), strict=True))


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str, outcomes: dict[str, bool]) -> None:
    assert outcomes[name] == ANSWERS[name][1]


def test_indentation_is_kept_and_the_fences_line_breaks_are_not() -> None:
    assert code_of("```python\n\n    a = 1\n    return a\n\n```") == "    a = 1\n    return a"
    assert code_of("  return 1\n") == "  return 1\n"


def test_the_filter_keeps_all_answers_of_every_row() -> None:
    assert extract(iter([["```\na\n```", "b"], ["c"]]), [{}, {}]) == [["a", "b"], ["c"]]


def test_a_rows_figures() -> None:
    """5 of 20 right: pass@1 = 1/4, pass@10 = 1 − C(15, 10) / C(20, 10) = 1 − 3003/184756."""
    codes = [RIGHT] * 4 + ["    return x // 4"] + [WRONG] * 10 + [""] * 5
    assert process_results(DOC, [codes]) == {
        "score": pytest.approx(1 - 3003 / 184756),
        "pass@1": pytest.approx(0.25),
    }


def test_with_fewer_samples_than_ten_any_right_one_is_enough() -> None:
    assert process_results(DOC, [[RIGHT, WRONG, ""]]) == {
        "score": 1.0,
        "pass@1": pytest.approx(1 / 3),
    }
    assert process_results(DOC, [["", " "]]) == {"score": 0.0, "pass@1": 0.0}
    assert process_results(DOC, [[RIGHT]]) == {"score": 1.0, "pass@1": 1.0}


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimator_is_the_share_of_all_draws_with_a_right_answer(n: int) -> None:
    for passed in range(n + 1):
        answers = [True] * passed + [False] * (n - passed)
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(answers, k)]
            assert pass_at_k(n, passed, k) == pytest.approx(sum(draws) / len(draws), abs=1e-15)
        assert pass_at_k(n, passed, n + 3) == float(passed > 0)


@pytest.mark.parametrize(("n", "passed"), [(0, 0), (2, 3), (2, -1)])
def test_the_estimator_refuses_what_cannot_be(n: int, passed: int) -> None:
    with pytest.raises(ValueError, match="answers right"):
        pass_at_k(n, passed, 1)


def test_the_prompt() -> None:
    assert apply_template(CONFIG["doc_to_text"], DOC) == (
        f"Complete the following function:\n{PROMPT}\n"
        "Provide CONCISE reasoning on how to arrive at the answer, and make sure to finish the response with the following, where "
        "(CODE) is the code for the complete function:\n\nHere is the completed function:\n\n```python\n(CODE)\n```"
    )


def test_the_settings() -> None:
    assert (CONFIG["repeats"], CONFIG["num_fewshot"], CONFIG["unsafe_code"]) == (20, 0, True)
    assert CONFIG["generation_kwargs"] == {
        "until": [],
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_gen_toks": 2048,
    }


def rows() -> list[dict[str, Any]]:
    if not DATA.is_file():
        pytest.skip("../shared/data/humaneval is absent")
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def passed(docs: Iterable[dict[str, Any]], codes: Iterable[str]) -> list[bool]:
    return [
        outcome.passed
        for outcome in run_programs(
            [program_of(doc, code) for doc, code in zip(docs, codes, strict=True)]
        )
    ]


def test_every_canonical_solution_passes() -> None:
    docs = rows()
    assert len(docs) == 164
    assert all(
        passed(docs, [code_of(f"{SAID}```python\n{doc['canonical_solution']}```") for doc in docs])
    )


@pytest.mark.parametrize("body", ["    return None", "    pass"])
def test_no_empty_body_passes(body: str) -> None:
    docs = rows()[:: 1 if body == "    pass" else 8]
    assert not any(passed(docs, [body] * len(docs)))
