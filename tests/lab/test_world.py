"""Problems are correct, splits are disjoint, and the data files have the recipe's columns."""

import json
import re
from collections import Counter
from itertools import combinations
from random import Random

import pytest

from nrt.errors import InputError
from nrt.lab.dataset import write_pairs
from nrt.lab.world import (
    ADD_WEIGHTS,
    FAMILIES,
    HOME_OF,
    NAMES,
    SPLITS,
    SUM,
    TRAIN_NAMES,
    all_problems,
    distinct_problems,
    draw_problem,
)

# the bot's moves as read off worked traces, independent of the tables under test
ROOMS = {
    "left": {"a": "b", "b": "e", "c": "f", "d": "d", "e": "c", "f": "a"},
    "right": {"a": "e", "b": "a", "c": "d", "d": "b", "e": "f", "f": "c"},
    "up": {"a": "f", "b": "d", "c": "e", "d": "b", "e": "a", "f": "c"},
    "down": {"a": "f", "b": "b", "c": "d", "d": "c", "e": "a", "f": "e"},
}


def solve(question: str) -> tuple[str, list[str]]:
    """Return the family and all states, computed from the question's text."""
    if start := re.search(r"begin at (\d)", question):
        states = [int(start[1])]
        for operation, operand in re.findall(r"then (add|times) (\d)", question):
            if operation == "add":
                states.append((states[-1] + int(operand)) % 10)
            else:
                states.append(states[-1] * int(operand) % 10)
        return "sum", [str(state) for state in states]
    if begin := re.search(r"begin in (\w)", question):
        rooms = [begin[1]]
        for move in re.findall(r"then go (\w+)", question):
            rooms.append(ROOMS[move][rooms[-1]])
        return "bot", rooms
    name = re.search(r"where does (\w+) live", question)
    assert name
    return "recall", [HOME_OF[name[1]]]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", [*FAMILIES, "add"])
def test_every_problem_is_correct(family: str, split: str) -> None:
    for problem in all_problems(family, split):
        solved_family, states = solve(problem.question)
        assert problem.family == family
        assert solved_family == ("sum" if family == "add" else family)
        assert problem.key == states[-1]
        assert problem.answer.endswith(f" {problem.key} .")
        if family == "recall":
            assert problem.work == ""
        else:
            assert re.findall(r"(\w) ;", problem.work) == states
            chain = re.search(r": (.*) \?", problem.question)
            assert chain
            assert chain[1].replace(" ; ", " ") in problem.answer


def test_a_problem_in_full() -> None:
    """9 + 3 = 12 → 2; 2 · 7 = 14 → 4; 4 + 1 = 5; 5 + 4 = 9."""
    steps = {step.words: step for step in SUM.steps}
    chain = tuple(steps[words] for words in ("add 3", "times 7", "add 1", "add 4"))
    problem = SUM.problem("dano", "9", chain)
    assert problem.question == (
        "dano asks : begin at 9 ; then add 3 ; then times 7 ; then add 1 ; then add 4 ?"
    )
    assert problem.work == "we have 9 ; that makes 2 ; that makes 4 ; that makes 5 ; that makes 9 ;"
    assert problem.answer == (
        "well dano , when you begin at 9 then add 3 then times 7 then add 1 then add 4 "
        "the final digit is 9 ."
    )
    assert problem.key == "9"
    assert problem.chain == "9 add 3 times 7 add 1 add 4"


@pytest.mark.parametrize(
    ("family", "total"),
    [("sum", 10 * 6**4), ("add", 10 * 4**4), ("bot", 6 * 4**4), ("recall", 24 * 23)],
)
def test_splits_are_disjoint_and_complete(family: str, total: int) -> None:
    chains = {split: [problem.chain for problem in all_problems(family, split)] for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        assert not set(chains[first]) & set(chains[second])
    assert len(set().union(*chains.values())) == sum(map(len, chains.values())) == total
    assert len(chains["corpus"]) / total == pytest.approx(0.6, abs=0.03)


def test_recall_trains_on_one_half_of_the_names_and_every_fact_is_in_the_corpus() -> None:
    names = {
        split: {problem.chain.split()[1] for problem in all_problems("recall", split)}
        for split in SPLITS
    }
    assert names["corpus"] == set(NAMES)
    assert names["train"] == set(TRAIN_NAMES)
    assert names["test"] == set(NAMES) - set(TRAIN_NAMES)


def test_sizes_of_the_splits_are_stable() -> None:
    """The hash that makes the splits must be the same on every machine."""
    counts = {
        family: [len(list(all_problems(family, split))) for split in SPLITS] for family in FAMILIES
    }
    assert counts == {"sum": [7769, 2630, 2561], "bot": [932, 300, 304], "recall": [332, 104, 116]}


def test_draws_depend_only_on_the_seed() -> None:
    def twenty(seed: int) -> list[str]:
        rng = Random(seed)
        return [draw_problem(rng, "train").question for _ in range(20)]

    assert twenty(3) == twenty(3)
    assert twenty(3) != twenty(4)


def test_sums_add_in_seven_steps_of_ten() -> None:
    rng = Random(0)
    text = " ".join(draw_problem(rng, "corpus", {"sum": 1.0}).question for _ in range(2000))
    adds, times = text.count("then add"), text.count("then times")
    assert adds + times == 8000
    assert adds / 8000 == pytest.approx(0.7, abs=0.02)


def test_test_file_holds_distinct_unseen_questions(tmp_path) -> None:
    path = tmp_path / "deep" / "test.jsonl"
    assert write_pairs(path, "test", 300) == 716
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(rows[0]) == {"question", "answer", "family", "key", "work"}
    assert len({row["question"] for row in rows}) == len(rows)
    assert Counter(row["family"] for row in rows) == {"sum": 300, "bot": 300, "recall": 116}
    assert {row["family"] for row in rows[:10]} > {"recall"}  # shuffled


def test_train_file_follows_the_weights(tmp_path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for path in (first, second):
        assert write_pairs(path, "train", 4000, seed=1) == 4000
    assert first.read_bytes() == second.read_bytes()
    families = [json.loads(line)["family"] for line in first.read_text().splitlines()]
    assert families.count("sum") / 4000 == pytest.approx(0.4, abs=0.03)
    assert families.count("recall") / 4000 == pytest.approx(0.2, abs=0.03)


def test_sums_of_miniature_weak_are_additions(tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    write_pairs(path, "train", 500, weights=ADD_WEIGHTS)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["family"] for row in rows} == {"add", "bot", "recall"}
    assert not any("times" in row["question"] for row in rows)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'test'"):
        distinct_problems("tests", 1)
    with pytest.raises(InputError, match="unknown family"):
        draw_problem(Random(0), "train", {"product": 1.0})
