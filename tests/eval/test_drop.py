"""DROP: the prompt, what is taken for the answer, its F1 worked by hand, and the benchmark's own golds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.eval.tasks import drop
from nrt.eval.tasks.drop import extract, process_results, spans_of, stated_answer
from tests.eval.chats import chat_of, task_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "drop" / "drop_validation_olmes1000.jsonl.gz"
CONFIG = Path(drop.__file__).with_suffix(".yaml")

N18, YARDS, PAIR, DATE = [["18"]], [["5 yards"]], [["Adam", "Bob"]], [["March 1992"]]

ANSWERS = {
    "a number": ("They scored twice nine times. The answer is 18", N18, 1.0, 1.0),
    "a number and a period": ("The answer is 18.", N18, 1.0, 1.0),
    "another number": ("The answer is 17.", N18, 0.0, 0.0),
    "a number with decimals": ("The answer is 18.00", N18, 1.0, 1.0),
    "dollars": ("The answer is $18", N18, 1.0, 1.0),
    "dollars and cents": (
        "The answer is $18.00",
        N18,
        0.0,
        0.0,
    ),  # punctuation goes where it is no number: 1800
    "percent": ("The answer is 18%.", N18, 1.0, 1.0),
    "percent with decimals": ("The answer is 45.3%", [["45.3"]], 0.0, 0.0),  # 453
    "a decimal": ("The answer is 45.3", [["45.3"]], 1.0, 1.0),
    "a decimal and a period": (
        "The answer is 45.3.",
        [["45.3"]],
        0.0,
        0.0,
    ),  # 45.3. is no number: 453
    "a decimal in small letters and a period": (
        "So the answer is 45.3.",
        [["45.3"]],
        1.0,
        1.0,
    ),  # here OLMES takes the period away
    "a comma": ("The answer is 1,024", [["1024"]], 1.0, 1.0),
    "a comma in the gold": ("The answer is 1024", [["1,024"]], 1.0, 1.0),
    "negative": ("The answer is -18", N18, 1.0, 1.0),  # a hyphen divides words
    "bold": ("The answer is **18**", N18, 1.0, 1.0),
    "bold as a whole": ("**The answer is 18.**", N18, 1.0, 1.0),
    "brackets": ("The answer is [18].", N18, 1.0, 1.0),
    "a box": (r"The answer is \boxed{18}", N18, 0.0, 0.0),  # boxed18
    "a box in dollars": (r"The answer is $\boxed{18}$.", N18, 0.0, 0.0),
    "text in LaTeX": (r"The answer is \text{Adam}", [["Adam"]], 0.0, 0.0),
    "a fraction": (r"The answer is \frac{1}{8}", [["1/8"]], 0.0, 0.0),  # frac18, and 18
    "a letter": ("The answer is (B)", N18, 0.0, 0.0),
    "a unit of its own": ("The answer is 5 yards", [["5"]], 0.67, 0.0),  # 1 of 2 words, 1 of 1: 2/3
    "the unit left out": ("The answer is 5", YARDS, 0.67, 0.0),
    "the unit with another number": (
        "The answer is 6 yards",
        YARDS,
        0.0,
        0.0,
    ),  # a gold with a number needs its number
    "the number with another unit": ("The answer is 5 feet", YARDS, 0.5, 0.0),
    "a hyphen": ("The answer is 5-yards", YARDS, 1.0, 1.0),
    "the best of two golds": ("The answer is 5", [["5 yards"], ["5"]], 1.0, 1.0),
    "a date": ("The answer is March 1992", DATE, 1.0, 1.0),
    "a date with a day": ("The answer is 5 March 1992", DATE, 0.8, 0.0),  # 2 of 3 words, 2 of 2
    "a date without its year": ("The answer is March", DATE, 0.0, 0.0),
    "a span": ("The answer is <the Pentagon report>", [["Pentagon report"]], 1.0, 1.0),
    "a span without its marks": (
        "The answer is the Pentagon report",
        [["Pentagon report"]],
        1.0,
        1.0,
    ),
    "a span too long": (
        "The answer is <the secret Pentagon report>",
        [["Pentagon report"]],
        0.8,
        0.0,
    ),
    "a span in capitals": ("The answer is <PENTAGON REPORT>.", [["Pentagon report"]], 1.0, 1.0),
    "two spans": ("The answer is <Adam>, <Bob>", PAIR, 1.0, 1.0),
    "two spans in another order": ("The answer is <Bob>,<Adam>.", PAIR, 1.0, 1.0),
    "two spans in one": ("The answer is <Adam, Bob>", PAIR, 0.33, 0.0),  # 2/3 with one of two
    "two spans without marks": ("The answer is Adam, Bob", PAIR, 0.33, 0.0),
    "one of two spans": ("The answer is <Adam>", PAIR, 0.5, 0.0),
    "one span too many": ("The answer is <Adam>, <Bob>", [["Adam"]], 0.5, 0.0),
    "twice the same span": ("The answer is <Adam>, <Adam>", [["Adam"]], 0.5, 0.0),
    "a comma within a span": ("The answer is <Paris, Texas>", [["Paris, Texas"]], 1.0, 1.0),
    "said twice, the last is right": (
        "The answer is 17.\nNo: it is one more. The answer is 18.",
        N18,
        1.0,
        1.0,
    ),
    "said twice on a line": (
        "The answer is 17. No, the answer is 18.",
        N18,
        0.33,
        0.0,
    ),  # 1 of 17, no, answer, is, 18: 2/6
    "small letters": ("So the answer is 18.", N18, 1.0, 1.0),
    "a colon": ("The answer is: 18", N18, 1.0, 1.0),
    "another phrase": ("Answer: 18.", N18, 1.0, 1.0),
    "on the next line": ("The answer is\n18", N18, 1.0, 1.0),
    "words on the next line": ("The answer is 18.\nIt is in the first sentence.", N18, 1.0, 1.0),
    "the answer in the middle only": ("They scored 18 points in all.", N18, 0.0, 0.0),
    "the number alone": ("18", N18, 0.0, 0.0),
    "the phrase alone": ("The answer is ", N18, 0.0, 0.0),
    "the phrase and a period": ("The answer is .", N18, 0.0, 0.0),
    "the end of a trace within": ("The answer is 17<|think_end|>\nThe answer is 18", N18, 1.0, 1.0),
    "the end of a trace twice": (
        "The answer is 18\n<|think_end|>\n<|think_end|>The answer is 17",
        N18,
        0.0,
        0.0,
    ),
    "the end of a trace in the line": (
        "The answer is 3<|think_end|>The answer is 18",
        N18,
        0.4,
        0.0,
    ),  # 3thinkendthe answer is 18
    "nothing": ("", N18, 0.0, 0.0),
    "white space": ("\n \n", N18, 0.0, 0.0),
    "nothing, and a gold of an article": ("", [["The"]], 0.0, 0.0),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    answer, golds, f1, match = ANSWERS[name]
    doc = {"answers": golds}
    assert process_results(doc, extract([[answer]], [doc])) == {"score": f1, "exact_match": match}


def test_a_gold_whose_first_span_is_empty_counts_for_nothing() -> None:
    assert process_results({"answers": [[" "], ["Bob"]]}, [["Adam"]]) == {
        "score": 0.0,
        "exact_match": 0.0,
    }


def test_the_filter_keeps_all_answers_of_every_row() -> None:
    assert extract(iter([["The answer is <a>, <b>.", "b"], ["answer: c"]]), [{}, {}]) == [
        ["<a>, <b>.", ""],
        ["c"],
    ]


def test_the_prompt_the_settings_and_through_lm_eval() -> None:
    doc: dict[str, Any] = {
        "query_id": "q",
        "passage": " They lost 3-0.",
        "question": "Who won? ",
        "answers": [["They"], ["3", "0"]],
    }
    task = task_of(load_yaml(CONFIG), [doc])
    asked = (
        "Read the following passage carefully, then answer the reading comprehension question that follows.\n"
        "Passage:  They lost 3-0.\n"
        "Question: Who won? \n"
        "\n"
        'Finish the response with "The answer is [answer]", where [answer] is exactly one of these formats:\n'
        "- Pure number (no units, or % sign), e.g.: 45.3\n"
        '- Date in "day month year" order, containing any of the date, month, and/or year components e.g.: March 1992\n'
        "- Span from passage enclosed in <..>, e.g.: <the Pentagon report>\n"
        "- List of spans from passage, e.g.: <Adam>, <Albert>, <Bob>"
    )
    chat = chat_of(task, doc)
    assert chat == [{"role": "user", "content": asked}]
    assert (task.config.num_fewshot, task.config.repeats) == (0, 1)
    assert task.config.generation_kwargs == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 512,
    }
    request = task.construct_requests(doc, json.dumps(chat), metadata=("nrt_drop", 0, 1))
    assert not isinstance(request, list)
    request.resps = ["The answer is <3>, <0>."]
    task._instances = [request]
    task.apply_filters()
    assert task.process_results(doc, [request.filtered_resps["extract"]]) == {
        "score": 1.0,
        "exact_match": 1.0,
    }


def test_every_gold_is_right() -> None:
    if not DATA.is_file():
        pytest.skip("../shared/data/drop is absent")
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        docs = [json.loads(line) for line in lines]
    assert len(docs) == 1000
    for doc in docs:
        for gold in doc["answers"]:
            text = stated_answer(f"The answer is {', '.join(f'<{span}>' for span in gold)}")
            assert len(spans_of(text)) == len(gold)
            assert process_results(doc, [[text]]) == {"score": 1.0, "exact_match": 1.0}
