"""GSM8K: the prompt, the number that is taken from an answer, and the benchmark's own solutions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.eval.tasks import gsm8k
from nrt.eval.tasks.gsm8k import extract, number_of, process_results
from tests.eval.chats import chat_of, task_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl.gz"
CONFIG = Path(gsm8k.__file__).with_suffix(".yaml")

ANSWERS = {
    "a sentence": ("9 eggs at $2 each, so she makes $18.", "18", True),
    "the number alone": ("18", "18", True),
    "the original's form": ("9 * 2 = <<9*2=18>>18\n#### 18", "18", True),
    "a period": ("The answer is 18.", "18", True),
    "cents": ("She makes $18.00.", "18", False),  # compared as text
    "half a dollar": ("She makes $18.50.", "18", False),
    "a decimal": ("Each costs $1.50.", "1.50", True),
    "a decimal that starts with its point": ("Each costs .5", "0.5", False),
    "percent": ("That is 18%.", "18", True),
    "a unit": ("She has 18 eggs.", "18", True),
    "a unit with a digit": ("The area is 18 m2.", "18", False),
    "a superscript": ("The area is 18 m².", "18", True),
    "a comma": ("They pay 1,024 dollars.", "1024", True),
    "a comma in the gold": ("They pay 1024 dollars.", "1,024", True),
    "two commas": ("They pay $1,450,000.", "1,450,000", True),
    "a list": ("The ages are 3, 6, 18", "18", True),
    "a list without spaces": ("The ages are 6,18", "18", False),  # 618
    "a list of digits": ("The ages are 1,2,3", "3", True),  # 12,3
    "a letter": ("The answer is (B)", "18", False),
    "a letter, then a number": ("The answer is (B) 18", "18", True),
    "boxed": (r"So \boxed{18}.", "18", True),
    "two boxes": (r"\boxed{17}, no: \boxed{18}", "18", True),
    "boxed with a unit": (r"\boxed{18 \text{ dollars}}", "18", True),
    "a fraction": (r"\boxed{\frac{36}{2}}", "18", False),
    "a fraction's denominator": (r"\dfrac{1}{18}", "18", True),
    "bold": ("**18**", "18", True),
    "an equation": ("9*2=18", "18", True),
    "a number after it": ("She makes 18 dollars in 1 day.", "18", False),
    "a power of ten": ("It is 1e3.", "1000", False),
    "a zero before it": ("It is 018.", "18", False),
    "a gap": ("It is 1 024.", "1024", False),
    "negative": ("The balance is -10.", "-10", True),
    "negative, without its sign": ("He lost 10.", "-10", True),
    "negative, of a positive gold": ("The balance is -10.", "10", True),
    "a negative decimal": ("The balance is -10.5", "10.5", False),
    "a negative decimal as it should be": ("The balance is -10.5", "-10.5", True),
    "words": ("She makes eighteen dollars.", "18", False),
    "the end of a trace within": ("17<|think_end|>18", "18", True),
    "the end of a trace twice": ("18<|think_end|>18<|think_end|>17", "18", False),
    "a further question": ("18\n\nQuestion: How many are 2 and 3?\nAnswer: 5", "18", False),
    "in the middle only": ("She makes 18 dollars: 9 eggs were sold for 2 each.", "18", False),
    "nothing": ("", "18", False),
    "white space": (" \n", "18", False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    answer, gold, right = ANSWERS[name]
    doc = {"question": "", "answer": f"3 and 4 are <<3+4=7>>7.\n#### {gold}"}
    assert process_results(doc, extract([[answer]], [doc])) == {"score": float(right)}


def test_an_answer_without_a_number_is_wrong_even_where_the_gold_has_none() -> None:
    assert process_results({"answer": "#### none"}, [[""]]) == {"score": 0.0}


def test_the_filter_keeps_all_answers_of_every_row() -> None:
    assert extract(iter([["a 1", "b"], ["1,000 c"]]), [{}, {}]) == [["1", ""], ["1000"]]


def test_the_prompt_and_the_settings() -> None:
    doc = {"question": "How many are 2 and 3? ", "answer": "2+3=<<2+3=5>>5\n#### 5"}
    task = task_of(load_yaml(CONFIG), [doc])
    assert chat_of(task, doc) == [
        {"role": "user", "content": "Question: How many are 2 and 3? \nAnswer:"}
    ]
    assert (task.config.num_fewshot, task.config.repeats) == (0, 1)
    assert task.config.generation_kwargs == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 2048,
    }


def test_through_lm_eval() -> None:
    doc = {"question": "How many are 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}
    task = task_of(load_yaml(CONFIG), [doc])
    request = task.construct_requests(doc, "", metadata=("nrt_gsm8k", 0, 1))
    assert not isinstance(request, list)
    request.resps = ["2 and 3 are 5."]
    task._instances = [request]
    task.apply_filters()
    assert task.process_results(doc, [request.filtered_resps["extract"]]) == {"score": 1.0}


def test_every_solution_is_right() -> None:
    if not DATA.is_file():
        pytest.skip("../shared/data/gsm8k is absent")
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        docs = [json.loads(line) for line in lines]
    assert len(docs) == 1319
    assert all(process_results(doc, [[number_of(doc["answer"])]])["score"] for doc in docs)
    assert not any(
        process_results(doc, [[number_of(doc["answer"]) + "1"]])["score"] for doc in docs
    )
