"""MMLU: the prompt, the letter that is found in an answer, and the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.eval.tasks import mmlu
from nrt.eval.tasks.mmlu import extract, letter_of, process_results
from tests.eval.chats import chat_of, task_of

YAML = Path(mmlu.__file__).with_suffix(".yaml")

DOC: dict[str, Any] = {
    "subject": "astronomy",
    "question": "Which planet is the largest?",
    "choices": ["Mars", "Jupiter", "{{Venus}}", "Earth"],
    "answer": "B",
}

ANSWERS = {
    "as asked": ("Jupiter is the largest. Therefore, the answer is (B)", "B"),
    "as asked, with a point": ("Therefore, the answer is (B).", "B"),
    "as asked, but wrong": ("Therefore, the answer is (C)", "C"),
    "as asked after another": ("The answer is (A). No. Therefore, the answer is (B)", "B"),
    "as asked twice, the last counts": (
        "Therefore, the answer is (A).\nWait. Therefore, the answer is (B).",
        "B",
    ),
    "as asked before another": ("Therefore, the answer is (B). Some say the answer is (C).", "B"),
    "said again after the end of the trace": (
        "Therefore, the answer is (A).<|think_end|>Therefore, the answer is (B).",
        "B",
    ),
    "said again, twice after the end": (
        "The answer is (A).<|think_end|><|think_end|>Therefore, the answer is (B)",
        "B",
    ),
    "between two ends": ("<|think_end|>Therefore, the answer is (B)<|think_end|>", "B"),
    "without the comma": ("Therefore the answer is B", "B"),
    "therefore before another": ("The answer is D. Therefore, the answer is: B.", "B"),
    "not as asked, the first counts": ("The answer is B. Or else the answer is D.", "B"),
    "in parentheses": ("the answer is (B)", "B"),
    "a colon": ("the answer is: B.", "B"),
    "small": ("the answer is b.", "B"),
    "small, in parentheses": ("Therefore, the answer is (b).", "B"),
    "small a": ("The answer is a.", "A"),
    "small a, in parentheses": ("the answer is (a)", "A"),
    "small a at the end of a line": ("the answer is a\nIt is a planet.", "A"),
    "a as an article": ("The answer is a matter of size: (B).", "B"),
    "a as an article, and a mark": ('The answer is a "gas giant", so choose (B).', "B"),
    "capital A with a reason": ("The answer is A because it is red.", "A"),
    "bold": ("Therefore, the answer is **B**.", "B"),
    "bold, in parentheses": ("(A) is a small one. Therefore, the answer is **(B)**.", "B"),
    "bold from the colon on": ("(A) is a small one. **The answer is: B**", "B"),
    "boxed": (r"(A) is a small one. The answer is $\boxed{B}$.", "B"),
    "boxed text": (r"(A) is a small one. The answer is \(\boxed{\text{(B)}}\).", "B"),
    "quoted": ('(A) is a small one. The answer is "B".', "B"),
    "on the next line": ("(A) is a small one. The answer is\n\nB", "B"),
    "with its words": ("The answer is (B) Jupiter, by far.", "B"),
    "a word that begins with a letter": ("The answer is Big. Choose (D).", "D"),
    "two letters together": ("The answer is BD.", ""),
    "is correct": ("(A) is small. Option B is correct.", "B"),
    "is correct, in parentheses": ("Against (A): (B) is correct.", "B"),
    "is correct, after a word": ("The method is correct, and data is correct. It is (B).", "B"),
    "is incorrect": ("(A) is incorrect and C is incorrect.", "A"),
    "in parentheses, the first counts": ("It is (B) and not (C).", "B"),
    "lone": ("B", "B"),
    "lone, the last counts": ("Not A, not C, but B.", "B"),
    "lone, the last line counts": ("C or D?\nI take B", "B"),
    "lone, with a colon": ("Answer: B", "B"),
    "lone, A as an article": ("B, I think. A planet of gas.", "B"),
    "lone A": ("It must be A", "A"),
    "lone A and a verb": ("Option A is my choice", "A"),
    "an article alone": ("A planet of gas.", ""),
    "a letter in a word": ("Because Jupiter. Definitely. Dwarf And Comet.", ""),
    "a letter joined to a word": ("D'Alembert, a B-movie and the C's.", ""),
    "a small letter alone": ("b", ""),
    "the words of the choice": ("Jupiter.", ""),
    "a letter out of range": ("Therefore, the answer is (E).", ""),
    "in the middle of a refusal": (
        "I cannot help with that. One might say (B), but I will not choose.",
        "B",
    ),
    "a refusal": ("I cannot answer this question.", ""),
    "the marker alone": ("<|think_end|><|think_end|>", ""),
    "nothing": ("", ""),
    "white space": (" \n\n", ""),
}
"""The letter by the rules of mmlu.yaml; a guess in the middle of a refusal is one by the fifth of them, as in OLMES."""


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    answer, letter = ANSWERS[name]
    assert letter_of(answer) == letter


def test_the_score() -> None:
    assert process_results(DOC, [["B"]]) == {"score": 1.0}
    assert process_results(DOC, [["A"]]) == process_results(DOC, [[""]]) == {"score": 0.0}


def test_the_filter_keeps_all_answers_of_every_row() -> None:
    assert extract(iter([["the answer is b", "C"], [""]]), [{}, {}]) == [["B", "C"], [""]]


def task() -> ConfigurableTask:
    return task_of(load_yaml(YAML), [DOC])


def test_the_prompt() -> None:
    assert chat_of(task(), DOC) == [
        {
            "role": "user",
            "content": "Answer the following multiple-choice question by giving the correct answer letter in parentheses. Provide CONCISE "
            'reasoning for the answer, and make sure to finish the response with "Therefore, the answer is (ANSWER_LETTER)" where '
            "(ANSWER_LETTER) is one of (A), (B), (C), (D).\n\n"
            "Question: Which planet is the largest?\n (A) Mars\n (B) Jupiter\n (C) {{Venus}}\n (D) Earth\n\n"
            'Answer the above question and REMEMBER to finish your response with the exact phrase "Therefore, the answer is '
            '(ANSWER_LETTER)" where (ANSWER_LETTER) is one of (A), (B), (C), (D).',
        }
    ]


def test_lm_eval_scores_a_row() -> None:
    built = task()
    built.build_all_requests(
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=lambda messages, **_: json.dumps(messages),
    )
    (instance,) = built.instances
    instance.resps.append("Therefore, the answer is (B)")
    built.apply_filters()
    assert built.process_results(DOC, [instance.filtered_resps["extract"]]) == {"score": 1.0}


def test_the_settings() -> None:
    config = load_yaml(YAML, resolve_func=False)
    assert (config["task"], config["num_fewshot"]) == ("nrt_mmlu", 0)
    assert config["generation_kwargs"] == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 2048,
    }
