"""Arithmetic questions: the work is right, and no test numbers are trained on."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

import pytest

from nrt.config import load_config
from nrt.lab import RECIPES
from nrt.lab.arithmetic import (
    EXAMPLE_NUMBERS,
    FAMILIES,
    LARGEST,
    draw_problems,
    messages,
    numbers_of_tests,
    word_problem,
    worked_examples,
)
from nrt.lab.settings import ARITHMETIC, BASES, PRETRAINED, arithmetic_settings


def test_by_hand():
    addsub = word_problem(FAMILIES["addsub2"], (3, 6, -2), [])
    assert addsub.question == "Start with 3. Add 6. Subtract 2. What number do you get?"
    assert (addsub.work, addsub.answer) == ("3 + 6 = 9. 9 - 2 = 7.", "The answer is 7.")
    count = word_problem(FAMILIES["count3"], (4, 2, 5), ["books", "maps", "pens"])
    assert count.question == "I have 4 books, 2 maps, 5 pens. How many things do I have?"
    assert (count.work, count.answer) == ("4 + 2 = 6. 6 + 5 = 11.", "The answer is 11.")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_each_sum_of_the_work_is_right(family):
    random = Random(1)
    for _ in range(200):
        numbers = family.numbers(random)
        work = word_problem(family, numbers, ["x"] * len(numbers)).work
        total = numbers[0]
        for left, sign, right, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", work):
            assert int(left) == total
            total = int(left) + (int(right) if sign == "+" else -int(right))
            assert int(result) == total >= 0
        assert total == sum(numbers)


def numbers_of(problem):
    """Return the numbers of a question, sorted: the split is blind to their order."""
    return tuple(
        sorted(
            -int(number) if word == "Subtract " else int(number)
            for word, number in re.findall(r"(Subtract )?(\d+)", problem.question)
        )
    )


def test_no_test_numbers_are_trained_on_in_any_words_or_order():
    trained, tested = set(), set()
    for family in FAMILIES.values():
        train = draw_problems(family, test=False, n=400, seed=0)
        test = draw_problems(family, test=True, n=32, seed=0)
        assert 20 < len(test) <= 32
        assert len(train) == len({problem.question for problem in train}) > 200
        assert train == draw_problems(family, test=False, n=400, seed=0)
        assert train != draw_problems(family, test=False, n=400, seed=1)
        trained |= {numbers_of(problem) for problem in train}
        tested |= {numbers_of(problem) for problem in test}
    assert trained.isdisjoint(tested)
    assert EXAMPLE_NUMBERS.isdisjoint(trained | tested)


@pytest.mark.parametrize("family", [FAMILIES["count3"], FAMILIES["add2"], FAMILIES["addsub2"]])
def test_results_are_as_frequent_in_the_test_as_in_training(family):
    """A split by the numbers' hash alone gave a test of nines and elevens, which training lacked."""
    means, spreads = [], []
    for test in (False, True):
        problems = draw_problems(family, test=test, n=400, seed=0)
        results = [sum(numbers_of(problem)) for problem in problems]
        means.append(fmean(results))
        spreads.append(pstdev(results))
    assert abs(means[0] - means[1]) < 0.3 * spreads[0]


def test_a_fifth_of_the_numbers_of_each_result_is_for_tests():
    chosen = numbers_of_tests(3)
    assert all(numbers == tuple(sorted(numbers)) for numbers in chosen)
    positive = [numbers for numbers in chosen if min(numbers) > 0]
    assert len(positive) == 16  # of 84: two of 7 or 8, one of 3, 4 or 5, none of 1 or 2
    by_sum = Counter(map(sum, positive))
    assert by_sum[12] == by_sum[11] == 2
    assert by_sum[3] == by_sum[21] == 0
    assert max(abs(n) for family in FAMILIES.values() for n in family.numbers(Random(0))) <= LARGEST


def test_examples_show_work_and_the_pair_does_not():
    examples = worked_examples([FAMILIES["count3"], FAMILIES["add2"]])
    (problem,) = draw_problems(FAMILIES["add2"], test=False, n=1, seed=0)
    turns = messages(problem, examples)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
    assert turns[1]["content"] == "4 + 2 = 6. 6 + 5 = 11.\nThe answer is 11."
    assert turns[-1]["content"] == problem.answer
    assert len(worked_examples([FAMILIES["add3"]])) == 2


def files(seed):
    """Return (rows of training, rows of the test) of recipe smollm2."""
    settings = dict(text.split("=", 1) for text in arithmetic_settings(ARITHMETIC["smollm2"], seed))
    texts = [Path(settings[key]).read_text() for key in ("data.train", "data.valid")]
    train, test = ([json.loads(line) for line in text.splitlines()] for text in texts)
    return train, test


def test_the_files_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    train, test = files(seed=3)
    assert 600 < len(train) <= 800
    assert 50 < len(test) <= load_config("smollm2").heldout.rows
    assert [row["source"] for row in test[:4]] == ["count3", "add2", "count3", "add2"]
    other_train, other_test = files(seed=4)
    assert other_train != train
    assert other_test == test, "every seed has the same test"


def test_each_recipe_of_the_lab_is_named_in_its_init():
    assert set(RECIPES) == {*BASES, *PRETRAINED}
