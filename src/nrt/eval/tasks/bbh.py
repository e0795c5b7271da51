"""BBH: configurations of its 27 tasks for lm-eval; extract the answer from a text and grade it.

Paper: Suzgun et al. 2022, arXiv 2210.09261.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nrt.eval.tasks import Doc, data
from nrt.eval.tasks.mmlu import NOT_ARTICLE, NOT_JOINED, SEPARATORS

LETTER = r"\([A-Z]\)"
YES_NO = r"\b(?:[yY]es|[nN]o)\b"
NUMBER = r"[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
BRACKETS = r"(?<!\|)[\])}>](?: *[\])}>])*"  # not the ">" of a marker such as <|end|>
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
"""Task → pattern of its answers."""


Rule = Callable[[str], list[str]]
"""Returns all answers that it finds in a text, in order."""


def extraction_rules(form: str) -> list[Rule]:
    """Return the rules for answers of one pattern, in order.

    The first rule that finds something counts, with the last answer that it finds.
    """
    direct, lone = rf"(?i:{form})", []
    if form == LETTER:
        direct += rf"|(?:[A-HJ-Z]|I(?!\s+[a-z]))\b{NOT_JOINED}"
        lone = [rf"\b([B-HJ-Z]|A{NOT_ARTICLE}|I(?!\s+[a-z]))\b{NOT_JOINED}"]
    phrases = ("So the answer is", "answer is", "answer:")
    after_phrase = [rf"(?i:{phrase}){SEPARATORS}({direct})" for phrase in phrases]
    anywhere = [f"({form})", *lone, f"(?i)({form})"]
    answer = re.compile(form, re.IGNORECASE)
    in_line = [
        partial(find_in_line_after, re.compile(phrase, re.IGNORECASE), answer)
        for phrase in ("answer:", r"answer\b")
    ]
    return [
        *(re.compile(rule).findall for rule in after_phrase),
        *in_line,
        *(re.compile(rule).findall for rule in anywhere),
    ]


def find_in_line_after(phrase: re.Pattern[str], form: re.Pattern[str], text: str) -> list[str]:
    """Return the matches of `phrase.*?(form)`, in linear time.

    That regular expression reads the rest of a line again for each occurrence of the phrase.
    """
    answers, position = [], 0
    match = form.search(text)
    while match and (begin := phrase.search(text, position)):
        position = begin.end()
        if match.start() < position:
            match = form.search(text, position)
        if match and (end := text.find("\n", position, match.start())) >= 0:
            position = end  # no match in this line
        elif match:
            answers.append(match[0])
            position = match.end()
    return answers


RULES = {form: extraction_rules(form) for form in set(ANSWERS.values())}
PUNCTUATION = str.maketrans("", "", string.punctuation + "’")


def answer_of(task: str, answer: str) -> str:
    """Return the answer in a text, or "" if there is none.

    >>> answer_of("navigate", "They end where they began. So the answer is Yes.")
    'Yes'
    """
    for rule in RULES[ANSWERS[task]]:
        matches = rule(answer)
        if matches:
            return matches[-1]
    return ""


def normalize(task: str, answer: str) -> str:
    """Return the form of an answer that is compared with the target."""
    if ANSWERS[task] == BRACKETS:
        return answer
    if ANSWERS[task] == NUMBER:
        return re.sub(r"\.0+$", "", answer.replace(",", "").replace("−", "-"))
    return answer.lower().translate(PUNCTUATION)


def extract(task: str, responses: Iterable[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the answer in every text of every row (lm-eval filter after `partial` with a task)."""
    return [[answer_of(task, answer) for answer in answers] for answers in responses]


def process_results(task: str, doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare the normalized answer with the normalized target."""
    ((answer,),) = results
    return {"score": float(normalize(task, answer) == normalize(task, doc["target"]))}


def configs() -> list[dict[str, Any]]:
    """Return the lm-eval configuration of each of the 27 tasks."""
    return [_config(task) for task in ANSWERS]


def _config(task: str) -> dict[str, Any]:
    config = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    folder = files("lm_eval") / "tasks" / "bbh" / "cot_fewshot"
    lm_eval_config = yaml.safe_load((folder / f"{task}.yaml").read_text(encoding="utf-8"))
    # lm-eval would move a task's own `description` into a system message, so it is a field of the
    # first sample.
    samples = lm_eval_config["fewshot_config"]["samples"]
    config["fewshot_config"]["samples"] = [
        {**sample, "description": "" if i else lm_eval_config["description"]}
        for i, sample in enumerate(samples)
    ]
    extract_task = {"function": "custom", "filter_fn": partial(extract, task)}
    return {
        **config,
        "task": f"nrt_bbh_{task}",
        "custom_dataset": partial(data.bbh, task),
        "filter_list": [{"name": "extract", "filter": [extract_task]}],
        "process_results": partial(process_results, task),
    }
