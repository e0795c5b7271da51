"""PopQA: the chat with its 15 examples, and whether an answer names the object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.eval.tasks import popqa
from nrt.eval.tasks.popqa import process_results
from tests.eval.chats import chat_of, task_of

CONFIG = Path(popqa.__file__).with_suffix(".yaml")

PARIS, USA, FILM = (
    ["Paris", "City of Light"],
    ["United States of America", "the US", "U.S.", "USA"],
    ["adventure film", "adventure"],
)
NUMBER = ["1,024", "#FFFFFF"]

ANSWERS = {
    "the name alone": ("Paris", PARIS, True),
    "another name": ("London", PARIS, False),
    "a space before it": (" Paris", PARIS, True),
    "a sentence": ("The capital of France is Paris.", PARIS, True),
    "an alias": ("It is the City of Light", PARIS, True),
    "small letters": ("paris", PARIS, True),
    "an alias in small letters": ("the city of light", PARIS, True),
    "an alias with one capital": ("City of light", PARIS, True),  # as str.capitalize makes it
    "an alias with other capitals": ("city of Light", PARIS, False),
    "capitals": ("PARIS", PARIS, False),
    "a capital where the name has none": ("Adventure film", FILM, True),
    "two capitals where the name has none": ("Adventure Film", ["adventure film"], False),
    "two capitals, but a shorter name within": ("Adventure Film", FILM, True),  # Adventure
    "within another word": ("Parisian", PARIS, True),
    "within another word, small": ("comparison", PARIS, True),
    "in the middle only": ("I think Paris, though Lyon is larger", PARIS, True),
    "denied": ("Not Paris", PARIS, True),
    "two answers": ("London or Paris", PARIS, True),
    "cut before its end": ("United States of", USA, False),
    "periods": ("U.S.", USA, True),
    "other periods": ("U.S.A.", USA, True),  # U.S. is in it
    "small letters with periods": ("u.s.", USA, True),
    "the answer is (B)": ("The answer is (B) Paris", PARIS, True),
    "the letter alone": ("The answer is (B)", PARIS, False),
    "in LaTeX": (r"\text{Paris}", PARIS, True),
    "a fraction": (r"\frac{1}{2}", ["1/2"], False),
    "a comma": ("1,024", NUMBER, True),
    "without the comma": ("1024", NUMBER, False),
    "dollars": ("$1,024.00", NUMBER, True),
    "a sign": ("#ffffff", NUMBER, True),
    "negative": ("-1,024", NUMBER, True),
    "percent": ("1,024%", NUMBER, True),
    "a box": (r"\boxed{London} \boxed{Paris}", PARIS, True),
    "the end of a trace within": ("London<|think_end|>Paris", PARIS, True),
    "the end of a trace twice": ("Paris<|think_end|><|think_end|>London", PARIS, True),  # anywhere
    "another script": ("Париж", PARIS, False),
    "an accent": ("Parîs", PARIS, False),
    "nothing": ("", PARIS, False),
    "white space": (" \n", PARIS, False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    answer, names, right = ANSWERS[name]
    assert process_results({"question": "", "possible_answers": names}, [answer]) == {
        "score": float(right)
    }


DOC: dict[str, Any] = {
    "question": "What is the capital of France?",
    "possible_answers": PARIS,
    "s_pop": 1,
    "from": "here",
}


@pytest.fixture(scope="module")
def task() -> ConfigurableTask:
    return task_of(load_yaml(CONFIG), [DOC])


def test_the_examples_are_turns_of_the_chat(task: ConfigurableTask) -> None:
    chat = chat_of(task, DOC, turns=True)
    assert [message["role"] for message in chat] == ["user", "assistant"] * 15 + ["user"]
    assert [message["content"] for message in chat[:4]] == [
        "Q: What is Thomas Widdrington's occupation? A:", "politician", "Q: In what city was Glover Morrill Allen born? A:", "Walpole",
    ]  # fmt: skip
    assert [message["content"] for message in chat[26:]] == [
        "Q: Who is the author of B²FH paper? A:", "William Alfred Fowler", "Q: Who is the mother of Terry Fox? A:", "Betty Fox",
        "Q: What is the capital of France? A:",
    ]  # fmt: skip
    assert chat_of(task, DOC, turns=True) == chat  # in this order always


def test_without_turns_they_are_one_text(task: ConfigurableTask) -> None:
    (message,) = chat_of(task, DOC, turns=False)
    assert message["content"].startswith(
        "Q: What is Thomas Widdrington's occupation? A: politician\n\nQ: In what city"
    )
    assert message["content"].endswith(
        "Terry Fox? A: Betty Fox\n\nQ: What is the capital of France? A:"
    )


def test_the_settings_and_through_lm_eval(task: ConfigurableTask) -> None:
    assert (task.config.num_fewshot, task.config.repeats) == (15, 1)
    assert task.config.generation_kwargs == {
        "until": ["\n\n"],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 15,
    }
    request = task.construct_requests(DOC, "", metadata=("nrt_popqa", 0, 1))
    assert not isinstance(request, list)
    request.resps = [" Paris"]
    task._instances = [request]
    task.apply_filters()
    assert task.process_results(DOC, list(request.filtered_resps.values())) == {"score": 1.0}
