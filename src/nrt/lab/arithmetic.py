"""Arithmetic questions in words for a pretrained model, as question–answer pairs.

Each family draws small numbers, words a question with them, and knows the work that leads to the
answer, one sum at a time. Worked examples before each question show the form of work and answer,
or a system message asks for it. The answer of a pair never holds work.

The split is by the numbers alone, whatever their order, so no numbers of a test question are
trained on, in whatever words and order. A fifth of the numbers with each result is for tests, so
results are about as frequent there as in training. No question has the numbers of a worked example.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from random import Random
from typing import Protocol

from nrt.lab.world import hash_fraction

TEST_SHARE = 0.2
"""Share of numbers that only test questions have."""

LARGEST = 7
"""Largest number of any question."""

THINGS = "apples bananas carrots peaches plums onions potatoes cats dogs chairs lamps".split()
EXAMPLE_THINGS = "books maps pens coins".split()

INSTRUCTION = "Add the numbers one at a time. Write each sum, then the answer."
"""System message in place of worked examples."""

MAX_TRIES = 100
"""Draws for each wanted question: a family of few numbers has fewer questions than are wanted."""

Numbers = tuple[int, ...]


class Family(Protocol):
    """A kind of question."""

    @property
    def name(self) -> str: ...
    @property
    def examples(self) -> Sequence[Numbers]: ...  # of worked examples; no question has them

    def numbers(self, random: Random) -> Numbers:
        """Draw the numbers of a question; the answer is their sum. The first is positive."""
        ...

    def question(self, numbers: Numbers, things: Sequence[str]) -> str:
        """Word the question."""
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """`Start with 3. Add 4. Subtract 1. What number do you get?` No result is negative."""

    name: str
    steps: int
    largest: int  # numbers are 1 … largest
    examples: Sequence[Numbers]
    subtracts: bool = False  # each step adds or subtracts, with equal chances

    def numbers(self, random: Random) -> Numbers:
        numbers = [random.randint(1, self.largest)]
        for _ in range(self.steps):
            number = random.randint(1, self.largest)
            if self.subtracts and random.random() < 0.5 and number <= sum(numbers):
                number = -number
            numbers.append(number)
        return tuple(numbers)

    def question(self, numbers: Numbers, things: Sequence[str]) -> str:
        first, *others = numbers
        steps = " ".join(f"{'Add' if n > 0 else 'Subtract'} {abs(n)}." for n in others)
        return f"Start with {first}. {steps} What number do you get?"


@dataclass(frozen=True, slots=True)
class Counting:
    """`I have 2 cats, 4 lamps, 1 plums. How many things do I have?`"""

    name: str
    kinds: int
    largest: int  # numbers are 1 … largest
    examples: Sequence[Numbers]

    def numbers(self, random: Random) -> Numbers:
        return tuple(random.randint(1, self.largest) for _ in range(self.kinds))

    def question(self, numbers: Numbers, things: Sequence[str]) -> str:
        listed = ", ".join(f"{n} {thing}" for n, thing in zip(numbers, things, strict=False))
        return f"I have {listed}. How many things do I have?"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Counting("count3", kinds=3, largest=6, examples=((4, 2, 5), (1, 5, 3))),
        Chain("add2", steps=2, largest=7, examples=((3, 4, 1), (6, 2, 5))),
        Chain("addsub2", steps=2, largest=7, subtracts=True, examples=((3, 6, -2), (5, -2, 4))),
        Counting("count4", kinds=4, largest=7, examples=((4, 2, 5, 1), (1, 5, 3, 2))),
        Chain("add3", steps=3, largest=7, examples=((3, 4, 1, 5), (6, 2, 5, 1))),
        Counting("count5", kinds=5, largest=7, examples=((4, 2, 5, 1, 3), (1, 5, 3, 2, 6))),
        Chain("add4", steps=4, largest=7, examples=((3, 4, 1, 5, 2), (6, 2, 5, 1, 3))),
    )
}
"""Families by name, from easy to hard."""

EXAMPLE_NUMBERS = {
    tuple(sorted(numbers)) for family in FAMILIES.values() for numbers in family.examples
}


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question with its reference answer and the work between them."""

    family: str
    question: str
    work: str  # `3 + 4 = 7. 7 + 1 = 8.`
    answer: str  # `The answer is 8.`


def draw_problems(family: Family, *, test: bool, n: int, seed: int) -> list[WordProblem]:
    """Return up to `n` questions of a family, fewer if it has fewer: different ones to train on,
    and to test on ones with different numbers.

    Args:
        test: whether their numbers are test numbers.
        seed: of the draw.
    """
    random = Random(f"{family.name} {test} {seed}")
    problems: dict[Numbers | str, WordProblem] = {}
    for _ in range(MAX_TRIES * n):
        numbers = family.numbers(random)
        if tuple(sorted(numbers)) in EXAMPLE_NUMBERS or is_test(numbers) != test:
            continue
        problem = word_problem(family, numbers, random.sample(THINGS, len(numbers)))
        problems.setdefault(numbers if test else problem.question, problem)
        if len(problems) == n:
            break
    return list(problems.values())


def is_test(numbers: Numbers) -> bool:
    """Return whether questions with these numbers, in any order and family, are test questions."""
    return tuple(sorted(numbers)) in numbers_of_tests(len(numbers))


@cache
def numbers_of_tests(count: int) -> frozenset[Numbers]:
    """Return the numbers of test questions with `count` numbers, sorted.

    Of the numbers with the same sum, and equally many subtractions, a hash chooses TEST_SHARE.
    """
    values = [*range(-LARGEST, 0), *range(1, LARGEST + 1)]
    strata: dict[tuple[int, int], list[Numbers]] = defaultdict(list)
    for numbers in combinations_with_replacement(values, count):
        strata[sum(numbers), sum(n < 0 for n in numbers)].append(numbers)
    chosen: set[Numbers] = set()
    for members in strata.values():
        members.sort(key=lambda numbers: hash_fraction(f"arithmetic {numbers}"))
        chosen.update(members[: round(TEST_SHARE * len(members))])
    return frozenset(chosen)


def worked_examples(families: Sequence[Family]) -> list[WordProblem]:
    """Return two worked examples: of the first two families, or both of the only one."""
    if len(families) == 1:
        chosen = [(families[0], numbers) for numbers in families[0].examples]
    else:
        chosen = [(family, family.examples[0]) for family in families[:2]]
    return [word_problem(family, numbers, EXAMPLE_THINGS) for family, numbers in chosen]


def word_problem(family: Family, numbers: Numbers, things: Sequence[str]) -> WordProblem:
    """Return the problem with these numbers; `things` are counted, if the family counts."""
    total, sums = numbers[0], []
    for number in numbers[1:]:
        sign = "+" if number > 0 else "-"
        sums.append(f"{total} {sign} {abs(number)} = {total + number}.")
        total += number
    return WordProblem(
        family.name,
        family.question(numbers, things),
        work=" ".join(sums),
        answer=f"The answer is {total}.",
    )


def messages(problem: WordProblem, examples: Sequence[WordProblem]) -> list[dict[str, str]]:
    """Return the chat turns of a pair: worked examples, the question, the answer without work.

    Without examples a system message asks for the work.
    """
    turns = []
    if not examples:
        turns.append({"role": "system", "content": INSTRUCTION})
    for example in examples:
        turns.append({"role": "user", "content": example.question})
        turns.append({"role": "assistant", "content": f"{example.work}\n{example.answer}"})
    turns.append({"role": "user", "content": problem.question})
    turns.append({"role": "assistant", "content": problem.answer})
    return turns
