"""Answers written to make grading slow: each benchmark reads them in linear time."""

import random
import re
import time

import pytest

from nrt.data.checkers import CHECKERS
from nrt.eval.tasks import bbh, drop, gsm8k, hendrycks_math, humaneval, mmlu
from nrt.eval.verdict import read_verdict

SECONDS, CHARACTERS = 1.0, 20_000

UNITS = [
    "\n", " ", "\t", "\u2003", "```", "```\n", "```python\n", "`", "(", "(A", "A ", "I ", "a", "no ", "valid", "is correct", "’", "*",
    "answer is ", "answer: ", "The answer is ", "Therefore, the answer is ", "Here is the completed function:",
    "Here is the completed function:\n```\n", "1", "1,", "111,", "1.", "-", ".", "<", "<a", ">, ", "] ", "$", "{", "}", "\\boxed{",
    "\\boxed", "\\[", "\\a{",
]  # fmt: skip

READERS = {
    "gsm8k": gsm8k.number_of,
    "mmlu": mmlu.letter_of,
    "drop": lambda text: drop.spans_of(drop.stated_answer(text)),
    "math": hendrycks_math.boxed,
    "humaneval": humaneval.code_of,
    **{
        f"bbh {form}": lambda text, task=task: bbh.answer_of(task, text)
        for form, task in {bbh.ANSWERS[t]: t for t in bbh.ANSWERS}.items()
    },
    **{name: lambda text, check=check: check(text, "7") for name, check in CHECKERS.items()},
}


@pytest.mark.parametrize("name", READERS)
def test_grading_takes_no_longer_than_reading(name):
    slow = []
    for unit in UNITS:
        for before, after in (("", ""), ("The answer is ", "\x01")):
            text = before + unit * (CHARACTERS // len(unit)) + after
            start = time.process_time()
            READERS[name](text)
            if (seconds := time.process_time() - start) > SECONDS:
                slow.append((before, unit, after, seconds))
    assert not slow


def test_a_program_after_thousands_of_empty_lines():
    start = time.process_time()
    assert humaneval.code_of("```python" + "\n" * 4000 + "x = 1").endswith("x = 1")
    assert time.process_time() - start < 0.1


FENCE = r"```(?:[ \t]*[A-Za-z][\w+.-]*[ \t]*(?=\n))?\n*"
AS_EXPRESSIONS = [
    re.compile(rf"Here is the completed function:\s*{FENCE}(.*?)\s*(?:```|\Z)", re.DOTALL),
    re.compile(rf"{FENCE}(.*?)\s*```", re.DOTALL),
    re.compile(rf"{FENCE}(.*?)\s*(?:```|\Z)", re.DOTALL),
]


def test_the_scan_finds_what_the_expressions_say():
    """The three regular expressions are the definition, and slow."""
    draw = random.Random(0)
    parts = [
        "```",
        "`",
        "\n",
        " ",
        "\t",
        "python",
        "x = 1",
        "Here is the completed function:",
        "+.-",
        "\x1c",
        "\u2003",
        "\n\n",
    ]
    for _ in range(20_000):
        answer = "".join(draw.choices(parts, k=draw.randint(0, 14)))
        blocks = next(
            (found for expression in AS_EXPRESSIONS if (found := expression.findall(answer))),
            [answer],
        )
        assert humaneval.code_of(answer) == blocks[-1]


def test_words_before_an_answer_are_found_as_the_expressions_say():
    draw = random.Random(1)
    parts = ["answer", "Answer: ", "answer:", " ", "\n", "(A)", "(b)", "Yes", "no", "12", "1,234", "-3", "] )", ">", "|>", "valid", "true",
             "word", "Two words,", ",", "’"]  # fmt: skip
    for form in set(bbh.ANSWERS.values()):
        for words in ("answer:", r"answer\b"):
            slow = re.compile(rf"(?i){words}.*?({form})")
            expressions = re.compile(words, re.IGNORECASE), re.compile(form, re.IGNORECASE)
            for _ in range(1000):
                text = "".join(draw.choices(parts, k=draw.randint(0, 14)))
                assert bbh.find_in_line_after(*expressions, text) == slow.findall(text)


@pytest.mark.parametrize("unit", ["\n", " ", "\t", "`", "```", "```\n", "{", "["])
def test_a_verdict_is_read_in_linear_time(unit):
    start = time.process_time()
    for reply in (
        "```json\n" + unit * 60_000,
        unit * 60_000 + "x",
        "```json\n" + unit * 60_000 + "```",
    ):
        with pytest.raises(ValueError):
            read_verdict(reply)
    assert time.process_time() - start < SECONDS
