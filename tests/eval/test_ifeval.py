"""IFEval: verdicts worked by hand for real prompts, the splitter of sentences, and that nothing asks the network."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from nrt.errors import InputError
from nrt.eval import sentences
from nrt.eval.sentences import (
    ifeval_checks,
    split_sentences,
    splitter_name,
    tokenize_words,
)
from nrt.eval.tasks import ifeval
from nrt.eval.tasks.ifeval import keep_all, mean_of_all, process_results, process_samples, verdicts

DATA = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "input_data.jsonl"

FOLLOWED = {
    3414: "I was OUT JOGGING when I FROZE. My legs STOPPED and my heart RACED.",  # 5 to 10 words in capitals: 7, "I" is one
    2341: "YES. IT IS A KIND THING TO DO FOR A FRIEND WHO IS ILL.",
    202: "another word for engravings is etchings, and a third one is carvings.",
    3563: "What is the name of the actor who played Gandalf in Lord of the Rings?\nIan McKellen.",
    1107: "Why did the rocket lie down? It was out of fuel.\n******\nWhat does a rocket read? Comets.",
    3743: "[name] met Zoe on [date] and was covered in [colour] bubbles.",
    1759: "Read the old masters first.\n\nP.S. Read them aloud.",
    3753: "c and b make 15, so a is 15. My answer is no.",
    1242: '{"name": "Staff"}',
    2925: "SECTION 1\nA man walks in.\nSECTION 2\nNobody asks who he is.\nSECTION 3\nNobody rules the bar.",
    2314: "* Domino\n* Panda\n* Oreo",
    2035: '"*Knock knock*. Who is there? *Lettuce*. Lettuce who? Lettuce in!"',  # five sentences
    3057: "<<The way back>>\n\nI undo what was done. What am I?",
    1508: "In forests he waits\nA golden riddle with teeth\nThe grass holds its breath",
    3595: "A rose has no need of a name.",
    2716: "I write code every day and want to do so at your company.",
    279: "<<going green>>\n\nthe gentle gray morning\ngreen fog is hugging the glen\ngeese are gliding along",
    2299: "Kwa nini pete ya uchumba ilikuwa na huzuni? Kwa sababu haikuwa na kidole cha kukaa na kupumzika.",
    2590: "Send for the movers.\n\nIt is quiet there.\n\nYes, it is a good place to live.",
    2921: "The sum of a and b is 40.\n***\nSo the value is 2.",
    2780: "Dr. A. B. Smith of St. Pancras, e.g., knows the timetable. It leaves at 3.15 p.m. on weekdays.",  # two sentences
    1092: "We went to Japan and came back.",
    3198: "I can do it.\n\nCall me at 631-481-4867",
}
"""By the prompts' keys; all 25 kinds of instruction are among them."""

BROKEN = [  # (prompt, answer, strict verdicts, loose verdicts): 1 where an instruction is followed
    (
        3414,
        "It was cold and the legs just stopped.",
        "01",
        "01",
    ),  # none in capitals: not 5, but fewer than 11
    (3414, "A B C D E F G H IJ KL MN", "10", "10"),  # eleven
    (2341, "Yes. It is a kind thing to do for a friend who is ill.", "0", "0"),
    (2341, "JA. ES IST SEHR FREUNDLICH UND HILFT DEN KRANKEN MENSCHEN.", "0", "0"),  # German
    (202, "Another word for engravings is etchings, and a third one is carvings.", "0", "0"),
    (
        202,
        "Sure, here it is:\nanother word for engravings is etchings, and a third one is carvings.",
        "0",
        "1",
    ),  # without its first line
    (3563, "The name of the actor who played Gandalf is Ian McKellen.", "0", "0"),
    (
        3563,
        "Sure!\nWhat is the name of the actor who played Gandalf in Lord of the Rings?\nIan McKellen.",
        "0",
        "1",
    ),
    (
        1107,
        "Well, it was out of fuel.\n******\nComets.",
        "01",
        "11",
    ),  # the comma stands in its first line
    (1107, "It was out of fuel.\n***\nComets.", "10", "10"),
    (
        1107,
        "Fuel.\n******\nComets.\n******\nStars.",
        "10",
        "11",
    ),  # three jokes, two without the first line
    (3743, "[name] met Zoe on [date].", "0", "0"),
    (1759, "Read the old masters first.\n\nPS: read them aloud.", "0", "0"),
    (3753, "No.", "0", "0"),
    (1242, 'Here it is: {"name": "Staff"}', "01", "01"),
    (1242, '{"nickname": "Staff"}', "10", "10"),
    (
        1242,
        'Here it is:\n{"name": "Staff"}\nEnjoy!',
        "01",
        "11",
    ),  # without its first and its last line
    (1242, "[" * 200_000, "00", "00"),  # Python's json gives up
    (2925, "SECTION 1\nA man walks in.\nSECTION 2\nNobody rules the bar.", "0", "0"),
    (2314, "* Domino\n* Panda\n* Oreo\n* Zebra", "0", "1"),  # three, once its first line is gone
    (2314, "1. Domino\n2. Panda\n3. Oreo", "0", "0"),
    (2314, "- Domino\n- Panda\n- Oreo\n- Zebra", "0", "1"),  # three, once its first line is gone
    (2035, "*Knock knock*. Who is there? *Lettuce*. Lettuce who? Lettuce in!", "101", "101"),
    (2035, '"*Knock knock*. Who is there? *Lettuce*. Lettuce in!"', "110", "110"),  # four sentences
    (2035, '"*Knock knock*. Who is there? Lettuce. Lettuce who? Lettuce in!"', "011", "011"),
    (3057, "The way back\n\nI undo what was done. What am I?", "0", "0"),
    (
        1508,
        "In forests he waits\nA golden mystery with teeth\nThe grass holds its breath",
        "01",
        "01",
    ),
    (
        1508,
        "In forests he waits,\nA golden riddle with teeth,\nThe grass holds its breath",
        "10",
        "10",
    ),
    (3595, "A rose has Beauty and needs no name.", "0", "0"),
    (2716, "The job is the one I want.", "0", "0"),
    (
        2716,
        "I know others like them.",
        "0",
        "0",
    ),  # "o-the-rs" and "the-m": it counts parts of words
    (
        279,
        "<<a good day>>\n\nthe morning is here\nthere is rain on the hills and the sea\nthe sheep are asleep",
        "101",
        "101",
    ),
    (
        279,
        "The gentle gray morning\ngreen fog is hugging the glen\ngeese are gliding along, going again",
        "010",
        "110",
    ),  # the capital stands in its first line
    (2299, "Why was the engagement ring sad? It had no finger to sit on.", "0", "0"),
    (2590, "Send for the movers.\n\nYes, it is a good place to live.", "0", "0"),
    (2590, "Movers are needed.\n\nIt is quiet there.\n\nSend them.", "0", "0"),
    (2921, "The sum of a and b is 40.\n\nSo the value is 2.", "0", "0"),
    (2780, "No. I cannot. There is none! Is there? Ask them. Good luck.", "0", "0"),  # six
    (
        2780,
        "Ask Mr. Smith. Or ask Mrs. Smith. Or ask J. R. Smith. Or the U.S. embassy. Or ask me!",
        "1",
        "1",
    ),  # five
    (1092, "word " * 300, "0", "0"),
    (1092, "word " * 299, "1", "1"),
    (3198, "Call me at 631-481-4867 any time.", "0", "0"),
    (3198, "I can do it.\n\n**Call me at 631-481-4867**", "0", "1"),  # without its asterisks
]


@functools.cache
def rows() -> dict[int, dict[str, Any]]:
    if not DATA.is_file():
        pytest.skip("../shared/data/ifeval is absent")
    found = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row for row in found}


def bits(followed: list[bool]) -> str:
    return "".join(str(int(one)) for one in followed)


def test_every_kind_of_instruction_is_among_the_answers() -> None:
    kinds = {kind for row in rows().values() for kind in row["instruction_id_list"]}
    assert {kind for key in FOLLOWED for kind in rows()[key]["instruction_id_list"]} == kinds
    assert len(kinds) == 25


@pytest.mark.parametrize("key", FOLLOWED)
def test_answers_that_follow_everything(key: int) -> None:
    strict, loose = verdicts(rows()[key], FOLLOWED[key])
    assert strict == loose == [True] * len(rows()[key]["instruction_id_list"])


@pytest.mark.parametrize(("key", "answer", "strict", "loose"), BROKEN, ids=range(len(BROKEN)))
def test_answers_that_break_an_instruction(key: int, answer: str, strict: str, loose: str) -> None:
    found = verdicts(rows()[key], answer)
    assert (bits(found[0]), bits(found[1])) == (strict, loose)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_follows_nothing(answer: str) -> None:
    for row in rows().values():
        found = process_results(row, [answer])
        assert found["score"] == found["prompt_strict"] == 0
        assert not any(found["inst_loose"] + found["inst_strict"])


def test_the_figures_are_lm_evals_own() -> None:
    answers = [
        *FOLLOWED.items(),
        *((key, answer) for key, answer, _, _ in BROKEN if not answer.startswith("[[[")),
    ]
    for key, answer in answers:
        ours, theirs = (
            process_results(rows()[key], [answer]),
            ifeval_checks().process_results(rows()[key], [answer]),
        )
        assert ours == {
            "score": theirs["prompt_level_loose_acc"],
            "prompt_strict": theirs["prompt_level_strict_acc"],
            "inst_loose": theirs["inst_level_loose_acc"],
            "inst_strict": theirs["inst_level_strict_acc"],
        }
    lists = [process_results(rows()[key], [answer])["inst_loose"] for key, answer in answers]
    assert mean_of_all(lists) == ifeval_checks().agg_inst_level_acc(lists)


def test_every_instruction_counts_the_same() -> None:
    """(1 + 0 + 1) / 3, not the mean over prompts, (1/2 + 1) / 2."""
    assert mean_of_all([[True, False], [True]]) == 2 / 3


def test_absent_arguments_may_be_none() -> None:
    """A table of rows has one set of columns."""
    row = rows()[1508]
    filled = {"keywords": None, "num_words": None, "relation": None}
    full = row | {"kwargs": [filled | given for given in row["kwargs"]]}
    assert verdicts(full, FOLLOWED[1508]) == verdicts(row, FOLLOWED[1508])


def test_a_guess_of_the_language_is_the_same_each_time() -> None:
    row, answer = rows()[2299], "La la la, ni ni no sana la."
    assert len({bits(verdicts(row, answer)[0]) for _ in range(20)}) == 1


def test_pass_at_10_of_the_samples() -> None:
    """3 of 20 right, of which one loosely only: 1 − C(17, 10) / C(20, 10) = 1 − 19448/184756. Of fewer than ten any right one will do."""
    row = rows()[202]
    right, loosely, wrong = FOLLOWED[202], "Sure:\n" + FOLLOWED[202], "Etchings."
    assert process_samples(row, [[right, loosely, right] + [wrong] * 16 + [""]]) == {
        "score": pytest.approx(1 - 19448 / 184756)
    }
    assert process_samples(row, [[wrong, loosely]]) == {"score": 1.0}
    assert process_samples(row, [[wrong, ""]]) == {"score": 0.0}


def test_the_filter_keeps_all_answers() -> None:
    assert keep_all([["a", "b"]], [{}]) == [["a", "b"]]


def test_the_settings() -> None:
    greedy = load_yaml(Path(ifeval.__file__).with_name("ifeval.yaml"), resolve_func=False)
    assert (greedy["num_fewshot"], greedy["doc_to_text"]) == (0, "prompt")
    assert greedy["generation_kwargs"] == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 2048,
    }
    sampled = load_yaml(
        Path(ifeval.__file__).with_name("ifeval_pass10.yaml"), resolve_func=False, recursive=True
    )
    assert (sampled["task"], sampled["repeats"], sampled["doc_to_text"]) == (
        "nrt_ifeval_pass10",
        20,
        "prompt",
    )
    assert sampled["generation_kwargs"] == {
        "until": [],
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_gen_toks": 2048,
    }


SENTENCES = {
    "": [],
    " \n ": [],
    "One": ["One"],
    "One. Two! Three? four": ["One.", "Two!", "Three?", "four"],
    "A title\n\nA sentence.\nAnother": ["A title\n\nA sentence.", "Another"],
    "Mr. and Mrs. Smith met Dr. Jones. They left.": [
        "Mr. and Mrs. Smith met Dr. Jones.",
        "They left.",
    ],
    "It is big, e.g. ten feet, i.e. 3.05 m. So be it.": [
        "It is big, e.g. ten feet, i.e. 3.05 m.",
        "So be it.",
    ],
    "She lives in the U.S. He does not.": ["She lives in the U.S.", "He does not."],
    "The U.S. Senate met at 5 p.m. on Monday.": ["The U.S. Senate met at 5 p.m. on Monday."],
    "J. R. R. Tolkien wrote it. I read it.": ["J. R. R. Tolkien wrote it.", "I read it."],
    "It costs $3.50. That is 1.000 more.": ["It costs $3.50.", "That is 1.000 more."],
    "It was 1999. Then came 2000. after that, 2001.": [
        "It was 1999.",
        "Then came 2000. after that, 2001.",
    ],
    '"Stop!" he said. “Why?” "Because."': ['"Stop!"', "he said.", "“Why?”", '"Because."'],
    "(It ends. Really.) And [it begins.] So": ["(It ends.", "Really.)", "And [it begins.]", "So"],
    "Wait... what? Well... Yes.": ["Wait... what?", "Well...", "Yes."],
    "What?! No!!! Oh.": ["What?!", "No!!!", "Oh."],
    "See example.com or v1.2.3 today.": ["See example.com or v1.2.3 today."],
    "*Bold.* **More.** Plain.": ["*Bold.*", "**More.**", "Plain."],
    "Buy milk, eggs, etc. and go. Fish, meat, etc. Then go.": [
        "Buy milk, eggs, etc. and go.",
        "Fish, meat, etc.",
        "Then go.",
    ],
    "no capital. here either.": ["no capital.", "here either."],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences(text: str) -> None:
    assert split_sentences(text) == SENTENCES[text]


def test_a_long_answer_is_split_in_no_time() -> None:
    for text in (
        "a" * 200_000,
        "." * 200_000,
        "\n" * 200_000,
        "Oh. " * 50_000,
        "“" * 200_000,
        "a." * 100_000,
    ):
        assert split_sentences(text) is not None


def test_words() -> None:
    assert tokenize_words("HELLO Mr. SMITH. It's $5.") == [
        "HELLO",
        "Mr.",
        "SMITH",
        ".",
        "It",
        "'s",
        "$",
        "5",
        ".",
    ]


@pytest.mark.parametrize("name", ["langdetect", "immutabledict", "nltk"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"{name}; in the folder of nrt's clone run pip install -e '.\[eval\]'"
    ):
        ifeval_checks.__wrapped__()


OFFLINE = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise SystemExit(f"asked the network: {event} {args}")

sys.addaudithook(refuse)
from nrt.eval.sentences import ifeval_checks, splitter_name
from nrt.eval.tasks.ifeval import verdicts

row = {"key": 1, "prompt": ""}
row["kwargs"] = [{"relation": "less than", "num_sentences": 2}, {"capital_relation": "at least", "capital_frequency": 2}]
row["instruction_id_list"] = ["length_constraints:number_sentences", "change_case:capital_word_frequency"]
print(splitter_name(), *verdicts(row, "I ASK e.g. him."))
"""  # fmt: skip


def run_offline(data: Path) -> str:
    """In a Python of its own, where lm-eval's modules are not imported yet."""
    environment = os.environ | {"NLTK_DATA": str(data), "HOME": str(data)}
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_without_punkts_data_ours_is_used_and_nothing_is_downloaded(tmp_path: Path) -> None:
    if sentences.splitter_name() != "nrt's own":
        pytest.skip("Punkt's data are installed")
    assert run_offline(tmp_path) == "nrt's own [True, True] [True, True]"


def test_with_punkts_data_nltks_is_used(tmp_path: Path) -> None:
    """Data of no abbreviation at all: "e.g." ends a sentence, so there are two."""
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "sent_starters.txt"):
        (folder / name).write_text("", encoding="utf-8")
    for name in ("collocations.tab", "ortho_context.tab"):
        (folder / name).write_text("", encoding="utf-8")
    assert run_offline(tmp_path) == "NLTK's Punkt [False, True] [False, True]"


def test_the_splitter_has_a_name() -> None:
    assert splitter_name() in ("NLTK's Punkt", "nrt's own")
