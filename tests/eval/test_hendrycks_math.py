r"""MATH: the prompt, the box that is taken from an answer, and whether it equals the gold's."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.eval.tasks import hendrycks_math
from nrt.eval.tasks.hendrycks_math import boxed, equal, extract, process_results
from tests.eval.chats import chat_of, task_of

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "fixtures" / "math.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
"""Rows written for this project."""
CONFIG = Path(hendrycks_math.__file__).with_suffix(".yaml")

ANSWERS = {
    "as asked": (r"So $t=\boxed{9}$.", "9", True),
    "as asked, but wrong": (r"So $t=\boxed{8}$.", "9", False),
    "without a box": ("The answer is 9.", "9", False),
    "without a box, in dollars": ("The answer is $9$.", "9", False),
    "two boxes, the last is right": (r"\boxed{8}? No: \boxed{9}", "9", True),
    "two boxes, the last is wrong": (r"\boxed{9}, or rather \boxed{8}", "9", False),
    "a box within a box": (r"\boxed{\boxed{9}}", "9", True),
    "the box in the middle": (r"\boxed{9} is right, since $4\cdot9-9=27$.", "9", True),
    "a box left open": (r"So $t=\boxed{9", "9", False),
    "a box left open after a closed one": (r"\boxed{9}, that is \boxed{\frac{18}{2", "9", False),
    "an empty box": (r"\boxed{}", "9", False),
    "nothing in the last box": (r"\boxed{9} \boxed{ }", "9", False),
    "no braces": (r"It is $\boxed 9$ in all.", "9", True),
    "the command alone": (r"It goes into \boxed", "9", False),
    "white space": (r"\boxed {  9  }", "9", True),
    "a period in the box": (r"\boxed{9.}", "9", True),
    "a letter": (r"The answer is \boxed{(B)}", r"\text{(B)}", True),
    "a letter without a box": ("the answer is (B)", r"\text{(B)}", False),
    "another letter": (r"\boxed{(C)}", r"\text{(B)}", False),
    "a fraction": (r"\boxed{\frac{3}{8}}", r"\frac{3}{8}", True),
    "a display fraction": (r"\boxed{\dfrac{3}{8}}", r"\frac{3}{8}", True),
    "a fraction without braces": (r"\boxed{\frac38}", r"\frac{3}{8}", True),
    "a fraction not reduced": (r"\boxed{\frac{6}{16}}", r"\frac{3}{8}", True),
    "a fraction with a slash": (r"\boxed{3/8}", r"\frac{3}{8}", True),
    "a decimal": (r"\boxed{0.375}", r"\frac{3}{8}", True),
    "a rounded decimal": (r"\boxed{0.38}", r"\frac{3}{8}", False),
    "a fraction upside down": (r"\boxed{\frac{8}{3}}", r"\frac{3}{8}", False),
    "a mixed number": (r"\boxed{1\frac34}", r"\frac{7}{4}", True),
    "negative": (r"\boxed{-\frac{2}{3}}", r"\frac{-2}{3}", True),
    "negative, without its sign": (r"\boxed{\frac{2}{3}}", r"-\frac{2}{3}", False),
    "a comma": (r"\boxed{1,024}", "1024", True),
    "a comma in braces": (r"\boxed{1{,}024}", "1024", True),
    "a comma in the gold": (r"\boxed{1024}", r"1{,}024", True),
    "dollars": (r"\boxed{\$18.00}", "18", True),
    "dollars in the gold": (r"\boxed{18}", r"\$18", True),
    "percent": (r"\boxed{50\%}", "50", True),
    "percent in the gold": (r"\boxed{50}", r"50\%", True),
    "percent as a part of one": (r"\boxed{0.5}", r"50\%", True),
    "a unit": (r"\boxed{12\text{ cm}}", "12", True),
    "a unit in the gold": (r"\boxed{12}", r"12\text{ cm}", True),
    "degrees": (r"\boxed{90^\circ}", "90", True),
    "words": (r"\boxed{\text{Ben}}", r"\text{Ben}", True),
    "words without a command": (r"\boxed{Ben}", r"\text{Ben}", True),
    "other words": (r"\boxed{\text{Carl}}", r"\text{Ben}", False),
    "an equation for its right side": (r"\boxed{x=5}", "5", True),
    "factors in another form": (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
    "another polynomial": (r"\boxed{x^2+2x}", "x^2+2x+1", False),
    "a root not simplified": (r"\boxed{\sqrt{18}}", r"3\sqrt{2}", True),
    "a root as a decimal": (r"\boxed{4.24}", r"3\sqrt{2}", False),
    "an interval": (r"\boxed{[2, 5)}", "[2,5)", True),
    "an interval closed": (r"\boxed{[2,5]}", "[2,5)", False),
    "a pair": (r"\boxed{\left(3, 4\right)}", "(3,4)", True),
    "a pair the other way round": (r"\boxed{(4,3)}", "(3,4)", False),
    "a list in another order": (r"\boxed{2,1}", "1,2", True),
    "a list with one too many": (r"\boxed{1,2,3}", "1,2", False),
    "escaped braces": (r"\boxed{\{1,2\}}", r"\{1,2\}", True),
    "a half-open set": (r"\boxed{\left\{1,2\right.}", "5", False),
    "a matrix": (
        r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        True,
    ),
    "another matrix": (
        r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        False,
    ),
    "what cannot be read, the same": (r"\boxed{\frac{}{}}", r"\frac{}{}", True),
    "what cannot be read": (r"\boxed{\frac{}{}}", "9", False),
    "one over nothing": (r"\boxed{\frac10}", "9", False),
    "the end of a trace within": (r"\boxed{8}<|think_end|>\boxed{9}", "9", True),
    "the end of a trace twice": (
        r"\boxed{9}<|think_end|>\boxed{9}<|think_end|>\boxed{8}",
        "9",
        False,
    ),
    "the end of a trace in the box": (r"\boxed{9<|think_end|>9}", "9", False),
    "a null byte": ("\\boxed{\0}", "9", False),
    "nothing": ("", "9", False),
    "line breaks": ("\n\n", "9", False),
}


def verdict(answer: str, solution: str) -> bool:
    doc = {"problem": "", "solution": solution}
    return process_results(doc, extract([[answer]], [doc])) == {"score": 1.0}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    answer, gold, right = ANSWERS[name]
    assert (
        verdict(answer, rf"A first guess is $\boxed{{0}}$, but it is $\boxed{{{gold}}}$.") == right
    )


def test_the_rows_are_of_all_types_and_levels() -> None:
    assert len(ROWS) == 20
    assert len({row["type"] for row in ROWS}) == 7
    assert {row["level"] for row in ROWS} == {f"Level {level}" for level in range(1, 6)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["problem"][:30])
def test_every_solution_is_right_and_no_other_rows(row: dict[str, str]) -> None:
    assert verdict(row["solution"], row["solution"])
    assert [verdict(other["solution"], row["solution"]) for other in ROWS] == [
        other is row for other in ROWS
    ]
    assert not verdict(rf"\boxed{{{boxed(row['solution'])}+1}}", row["solution"])


def test_a_tower_of_powers_is_wrong_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hendrycks_math, "SECONDS", 1)
    assert not verdict(r"\boxed{9^{9^{9^{9}}}}", r"\boxed{9}")


def test_in_a_thread() -> None:
    found: list[bool] = []
    thread = Thread(target=lambda: found.extend([equal(r"\frac12", "0.5"), equal("5", "6")]))
    thread.start()
    thread.join()
    assert found == [True, False]


def test_the_filter_keeps_all_answers_of_every_row() -> None:
    assert extract(iter([[r"\boxed{1}", "b"], [r"\boxed{\frac{1}{2}} c"]]), [{}, {}]) == [
        ["1", ""],
        [r"\frac{1}{2}"],
    ]


def test_the_prompt_the_settings_and_through_lm_eval() -> None:
    task = task_of(load_yaml(CONFIG), ROWS)
    doc: dict[str, Any] = ROWS[0]
    asked = "If $4t-9=27$, what is $t$?\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    chat = chat_of(task, doc)
    assert chat == [{"role": "user", "content": asked}]
    assert (task.config.num_fewshot, task.config.repeats) == (0, 1)
    assert task.config.generation_kwargs == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 2048,
    }
    request = task.construct_requests(doc, json.dumps(chat), metadata=("nrt_math", 0, 1))
    assert not isinstance(request, list)
    request.resps = [r"So $t=\boxed{\frac{18}{2}}$."]
    task._instances = [request]
    task.apply_filters()
    assert task.process_results(doc, [request.filtered_resps["extract"]]) == {"score": 1.0}
