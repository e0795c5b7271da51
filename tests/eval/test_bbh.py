"""BBH: the 27 configurations, their chats, and the answer that is found in a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nrt.eval.tasks.bbh import ANSWERS, answer_of, configs, extract, process_results
from tests.eval.chats import chat_of, task_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "bbh"
STEPS = "A: Let's think step by step."

VERDICTS: dict[str, Sequence[tuple[str, str, bool]]] = {  # (target, answer, whether it is right)
    "boolean_expressions": [
        ("True", "Z = not False = True. So the answer is True.", True),
        ("True", "Z = not True = False. So the answer is False.", False),
        ("True", "so the answer is TRUE", True),
        ("True", "**So the answer is: True**", True),
        ("True", r"So the answer is $\boxed{\text{True}}$.", True),
        ("True", "So the answer is False. Wait. So the answer is True.", True),  # the last
        ("True", "So the answer is True. The answer is False.", True),  # the first rule
        ("True", "So the answer is False.<|think_end|><|think_end|>So the answer is True.", True),
        ("True", "False or True = True", True),
        ("True", "True and False = False", False),
        ("True", "It is untrue.", False),
        ("True", "", False),
        ("True", " \n", False),
    ],
    "navigate": [
        ("No", "So the answer is No.", True),
        ("No", "so the answer is no", True),
        ("No", "The answer: no.", True),
        ("No", "Answer: **No**", True),
        ("No", "So the answer is Yes.", False),
        ("No", "I do not know.", False),
        ("No", "Nobody has noted an answer.", False),
        ("No", "So the answer is not No but Yes.", True),  # the first after "answer", as in OLMES
        ("Yes", "No? Yes.", True),
        ("Yes", "(0, 0)", False),
        (
            "Yes",
            "I cannot answer this. Some may say yes, I will not.",
            True,
        ),  # a guess, as in OLMES
    ],
    "sports_understanding": [
        ("yes", "So the answer is Yes.", True),
        ("no", "It is not plausible. So the answer is no.", True),
        ("no", "yesterday", False),
    ],
    "formal_fallacies": [
        ("invalid", "So the answer is invalid.", True),
        ("invalid", "The argument is invalid.", True),
        ("valid", "The argument is invalid.", False),
        ("valid", "So the answer is valid.", True),
        ("invalid", "So the answer is valid.", False),
        ("invalid", "The argument is Invalid, not valid.", False),  # the last
        ("valid", "It validates the argument.", False),
        ("invalid", "The argument is not valid.", False),
    ],
    "date_understanding": [
        ("(B)", "So the answer is (B).", True),
        ("(B)", "So the answer is B.", True),
        ("(B)", "(A) is too early. So the answer is B.", True),
        ("(B)", "(A) is too early. Answer: B", True),
        ("(B)", "So the answer is (b).", True),
        ("(B)", "So the answer is **(B)** 12/14/1937.", True),
        ("(B)", r"(A) is too early. So the answer is \(\boxed{B}\).", True),
        ("(B)", "The answer is: (B).", True),
        ("(B)", "The answer must be (B).", True),
        ("(B)", "The answer is (A). So the answer is (B).", True),
        ("(B)", "So the answer is (B). So the answer is (C).", False),  # the last
        ("(B)", "Not (A), but (B)", True),
        ("(B)", "Not A, but B", True),
        ("(B)", "(b)", True),
        ("(B)", "b", False),
        ("(B)", "So the answer is 12/14/1937.", False),
        ("(B)", "So the answer is Both.", False),
        ("(A)", "The answer is a matter of days.", False),
        ("(A)", "A day later, I think.", False),
        ("(A)", "So the answer is A because of the leap year.", True),
        ("(A)", "Option A is it", True),
        ("(B)", "I cannot answer. (B) is what some say. No.", True),  # a guess, as in OLMES
        ("(B)", "", False),
    ],
    "geometric_shapes": [
        ("(I)", "So the answer is (I).", True),
        ("(I)", "So the answer is I.", True),
        ("(I)", "I think it is a kite.", False),
        ("(I)", "So the answer is I think (K).", False),
        ("(K)", "So the answer is I think (K).", True),
    ],
    "movie_recommendation": [
        ("Monsters, Inc", "So the answer is Monsters, Inc.", False)
    ],  # no letter
    "multistep_arithmetic_two": [
        ("-50", "So the answer is -50.", True),
        ("-50", "So the answer is 50.", False),
        ("50", "So the answer is -50.", False),
        ("-50", "So the answer is −50.", True),
        ("-50", "So the answer is $-50$.", True),
        ("-50", r"So the answer is \boxed{-50}.", True),
        ("-11520", "So the answer is -11,520.", True),
        ("-1024", "So the answer is **-1,024**.", True),
        ("1", "So the answer is 1,024.", False),
        ("24", "So the answer is 24.0.", True),
        ("24", "So the answer is 24.5.", False),
        ("24", "So the answer is 4 * 6 = 24.", False),  # the first after "answer is", as in OLMES
        ("24", "4 * 6 = 24", True),
        ("24", "So the answer is twenty-four.", False),
        ("24", "So the answer is 240.", False),
    ],
    "object_counting": [
        ("8", "So the answer is 8.", True),
        ("8", "So the answer is 8 apples.", True),
        ("8", "The answer is that there are 8", True),
        ("8", "3 + 5 = 8", True),
        ("8", "So the answer is 18.", False),
        ("8", "So the answer is 8.5.", False),
        ("8", "So the answer is -8.", False),
        ("8", "So the answer is eight.", False),
        ("8", "So the answer is 7.<|think_end|>So the answer is 8.<|think_end|>", True),
    ],
    "dyck_languages": [
        ("] ) }", "So the answer is ] ) }.", True),
        ("] ) }", "So the answer is ] ) }", True),
        ("] ) }", "So the answer is ) ] }.", False),
        ("] ) }", "So the answer is ] ) } }.", False),
        ("] ) }", "So the answer is ] ).", False),
        ("] ) }", "So the answer is ]) }.", False),  # spaces count
        ("] ) }", "So the answer is ])}.", False),
        ("] ) }", "So the answer is: ] ) }", True),
        ("] ) }", "So the answer is `] ) }`.", True),
        ("] ) }", "So the answer is **] ) }**.", True),
        ("] ) }", "The answer: ] ) }", True),
        ("] ) }", "] ) }", True),
        ("] ) }", "] ) }<|think_end|>", True),
        (">", "So the answer is {.", False),
        (">", "<|think_end|><|think_end|>", False),
        (">", "", False),
    ],
    "word_sorting": [
        ("apple it&t o'connor", "So the answer is apple it&t o'connor.", True),
        ("apple it&t o'connor", "So the answer is apple it&t o’connor.", True),
        ("apple it&t o'connor", "So the answer is Apple IT&T O'Connor.", True),
        ("apple it&t o'connor", "So the answer is apple, it&t, o'connor.", True),
        ("apple it&t o'connor", "So the answer is apple o'connor it&t.", False),
        ("apple it&t o'connor", "So the answer is apple it&t.", False),
        ("apple it&t o'connor", "So the answer is apple it&t o'connor pear.", False),
        ("apple pear", "So the answer is: apple pear", True),
        ("apple pear", "So the answer is **apple pear**.", True),
        ("apple pear", "apple pear", True),
        ("apple pear", "Sorted: apple pear", True),
        ("apple pear", "1. apple\n2. pear", False),
        ("apple pear", "The sorted words are apple pear.", False),
        ("apple pear", "applepear", False),
        ("apple pear", "", False),
    ],
}


@pytest.mark.parametrize(
    ("task", "target", "answer", "right"),
    [(task, *verdict) for task, some in VERDICTS.items() for verdict in some],
)
def test_answers(task: str, target: str, answer: str, right: bool) -> None:
    filtered = extract(task, [[answer]], [{}])
    assert process_results(task, {"target": target}, filtered) == {"score": float(right)}


def test_there_are_27_tasks() -> None:
    assert [config["task"] for config in configs()] == [f"nrt_bbh_{task}" for task in ANSWERS]
    assert len(ANSWERS) == 27


def test_the_settings() -> None:
    for config in configs():
        assert (config["num_fewshot"], len(config["fewshot_config"]["samples"])) == (3, 3)
        assert config["generation_kwargs"] == {
            "until": [],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": 512,
        }


@pytest.mark.parametrize("config", configs(), ids=ANSWERS)
def test_the_worked_examples_answers_are_found(config: dict[str, Any]) -> None:
    task = config["task"].removeprefix("nrt_bbh_")
    for sample in config["fewshot_config"]["samples"]:
        assert sample["target"].endswith(f"So the answer is {answer_of(task, sample['target'])}.")


def chat(config: dict[str, Any], doc: dict[str, str]) -> list[dict[str, str]]:
    task = task_of(config, [doc])
    assert task.config.num_fewshot == 3
    return chat_of(task, doc)


def test_a_chat() -> None:
    """The description is in the first user's turn alone, and " " opens the model's turns, as in OLMES."""
    (config,) = [config for config in configs() if config["task"] == "nrt_bbh_web_of_lies"]
    turns = chat(config, {"input": "Question: {{Ann}} lies. Does she?", "target": "Yes"})
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert turns[0]["content"] == (
        "Evaluate a random boolean function expressed as a word problem.\n\n"
        "Q: Question: Fidel tells the truth. Jerry says Fidel tells the truth. Vina says Jerry tells the truth. Millicent says Vina lies. "
        f"Raymond says Millicent lies. Does Raymond tell the truth?\n{STEPS}"
    )
    assert turns[1]["content"].startswith(" (1) Fidel tells the truth.")
    assert turns[1]["content"].endswith(" So the answer is Yes.")
    assert turns[2]["content"].startswith("Q: Question: Kristian lies.")
    assert turns[-1]["content"] == f"Q: Question: {{{{Ann}}}} lies. Does she?\n{STEPS}"


@pytest.mark.parametrize("config", configs(), ids=ANSWERS)
def test_the_chat_is_the_benchmarks_own_prompt(config: dict[str, Any]) -> None:
    """But for the line break after "step by step.", which is a space in the chat."""
    if not DATA.is_dir():
        pytest.skip("../shared/data/bbh is absent")
    file = DATA / "cot-prompts" / f"{config['task'].removeprefix('nrt_bbh_')}.txt"
    _, own = file.read_text(encoding="utf-8").split("-----\n")
    *examples, last = [turn["content"] for turn in chat(config, {"input": "1 + 1", "target": "2"})]
    turns = ["".join(examples[place : place + 2]) for place in range(0, 6, 2)]
    assert "\n\n".join(turns) == own.strip().replace(f"{STEPS}\n", f"{STEPS} ")
    assert last == f"Q: 1 + 1\n{STEPS}"


def test_lm_eval_scores_a_row() -> None:
    doc = {"input": "1 + 1", "target": "2"}
    config = next(config for config in configs() if config["task"] == "nrt_bbh_object_counting")
    task = task_of(config, [doc])
    task.build_all_requests(
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=lambda messages, **_: json.dumps(messages),
    )
    (instance,) = task.instances
    instance.resps.append("So the answer is 2.")
    task.apply_filters()
    assert task.process_results(doc, [instance.filtered_resps["extract"]]) == {"score": 1.0}


@pytest.mark.parametrize("task", ANSWERS)
def test_every_target_is_found_where_it_is_said(task: str) -> None:
    if not DATA.is_dir():
        pytest.skip("../shared/data/bbh is absent")
    rows = json.loads((DATA / "bbh" / f"{task}.json").read_text(encoding="utf-8"))["examples"]
    missed = {
        row["target"]
        for row in rows
        if not process_results(
            task, row, extract(task, [[f"So the answer is {row['target']}."]], [row])
        )["score"]
    }
    titles = {
        "movie_recommendation": {"Monsters, Inc"},
        "ruin_names": {"dearth, wind, & fire", "rita, sue and bob poo"},
    }
    assert missed == titles.get(task, set())
