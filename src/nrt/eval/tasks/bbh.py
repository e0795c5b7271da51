"""BBH (Suzgun et al. 2022, arXiv 2210.09261): its 27 tasks for lm-eval, the answer out of a text, and whether it is the right one."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nrt.eval.tasks import data
from nrt.eval.tasks.mmlu import MARKS, NO_ARTICLE, UNJOINED

Doc = Mapping[str, Any]

LETTER = r"\([A-Z]\)"
YES_NO = r"\b(?:[yY]es|[nN]o)\b"
NUMBER = r"[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
BRACKETS = r"(?<!\|)[\])}>](?: *[\])}>])*"  # the ">" of a marker such as <|end|> is none
WORDS = r"\b[a-z][a-z'’&]*(?:,? [a-z][a-z'’&]*)*"

ANSWERS = {
    "boolean_expressions": r"\b(?:[tT]rue|[fF]alse)\b",
    "causal_judgement": YES_NO,
    "date_understanding": LETTER,
    "disambiguation_qa": LETTER,
    "dyck_languages": BRACKETS,
    "formal_fallacies": r"\b(?:[iI]nvalid|[vV]alid)\b",
    "geometric_shapes": LETTER,
    "hyperbaton": LETTER,
    "logical_deduction_five_objects": LETTER,
    "logical_deduction_seven_objects": LETTER,
    "logical_deduction_three_objects": LETTER,
    "movie_recommendation": LETTER,
    "multistep_arithmetic_two": NUMBER,
    "navigate": YES_NO,
    "object_counting": NUMBER,
    "penguins_in_a_table": LETTER,
    "reasoning_about_colored_objects": LETTER,
    "ruin_names": LETTER,
    "salient_translation_error_detection": LETTER,
    "snarks": LETTER,
    "sports_understanding": YES_NO,
    "temporal_sequences": LETTER,
    "tracking_shuffled_objects_five_objects": LETTER,
    "tracking_shuffled_objects_seven_objects": LETTER,
    "tracking_shuffled_objects_three_objects": LETTER,
    "web_of_lies": YES_NO,
    "word_sorting": WORDS,
}
"""By task, what an answer looks like."""


Rule = Callable[[str], list[str]]
"""All that a text says by it, in order."""


def rules_of(form: str) -> list[Rule]:
    """The first that finds something, and of it the last."""
    direct, lone = rf"(?i:{form})", []
    if form == LETTER:
        direct += rf"|(?:[A-HJ-Z]|I(?!\s+[a-z]))\b{UNJOINED}"
        lone = [rf"\b([B-HJ-Z]|A{NO_ARTICLE}|I(?!\s+[a-z]))\b{UNJOINED}"]
    said = [rf"(?i:{words}){MARKS}({direct})" for words in ("So the answer is", "answer is", "answer:")]
    alone = [f"({form})", *lone, f"(?i)({form})"]
    after = [
        partial(in_line_after, re.compile(words, re.IGNORECASE), re.compile(form, re.IGNORECASE)) for words in ("answer:", r"answer\b")
    ]
    return [*(re.compile(rule).findall for rule in said), *after, *(re.compile(rule).findall for rule in alone)]


def in_line_after(words: re.Pattern[str], form: re.Pattern[str], text: str) -> list[str]:
    """What `words.*?(form)` finds, in linear time: that expression reads the rest of a line again for each of its words."""
    found, at = [], 0
    match = form.search(text)
    while match and (begin := words.search(text, at)):
        at = begin.end()
        if match.start() < at:
            match = form.search(text, at)
        if match and (end := text.find("\n", at, match.start())) >= 0:
            at = end  # nothing in this line
        elif match:
            found.append(match[0])
            at = match.end()
    return found


RULES = {form: rules_of(form) for form in set(ANSWERS.values())}
PUNCTUATION = str.maketrans("", "", string.punctuation + "’")


def answer_of(task: str, answer: str) -> str:
    """Empty where there is none.

    >>> answer_of("navigate", "They end where they began. So the answer is Yes.")
    'Yes'
    """
    for rule in RULES[ANSWERS[task]]:
        if found := rule(answer):
            return found[-1]
    return ""


def plain(task: str, answer: str) -> str:
    """What is compared."""
    if ANSWERS[task] == BRACKETS:
        return answer
    if ANSWERS[task] == NUMBER:
        return re.sub(r"\.0+$", "", answer.replace(",", "").replace("−", "-"))
    return answer.lower().translate(PUNCTUATION)


def extract(task: str, responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """lm-eval's filter, once the task is given: the answer in every text of every row."""
    return [[answer_of(task, answer) for answer in answers] for answers in responses]


def process_results(task: str, doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    ((answer,),) = results
    return {"score": float(plain(task, answer) == plain(task, doc["target"]))}


def configs() -> list[dict[str, Any]]:
    """lm-eval's configuration of each of the 27 tasks."""
    return [_config(task) for task in ANSWERS]


def _config(task: str) -> dict[str, Any]:
    config = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    theirs = yaml.safe_load((files("lm_eval") / "tasks" / "bbh" / "cot_fewshot" / f"{task}.yaml").read_text(encoding="utf-8"))
    # lm-eval puts a task's own `description` into a system message
    config["fewshot_config"]["samples"] = [
        {**sample, "description": "" if place else theirs["description"]}
        for place, sample in enumerate(theirs["fewshot_config"]["samples"])
    ]
    return {
        **config,
        "task": f"nrt_bbh_{task}",
        "custom_dataset": partial(data.bbh, task),
        "filter_list": [{"name": "extract", "filter": [{"function": "custom", "filter_fn": partial(extract, task)}]}],
        "process_results": partial(process_results, task),
    }
