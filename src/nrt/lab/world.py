"""World of the miniature: three families of problems in a language of about 130 words.

- *sum*: a digit, then four operations modulo 10 (*add*: additions only). *bot*: a room, then four
  moves. Both are a `Walk`: a state and four steps, each a table from state to state. The answer
  repeats the question and names the last state, the one hard token (the *key*). A trace that writes
  every state on the way makes the key easy. A step takes as many words in the question as in the
  trace, so that a small attention model finds each operand at a constant distance.
- *recall*: in which town does somebody live? No trace can help.

No problem of one split is in another. For walks the split depends only on the *chain* (state and
steps), so the model has seen no chain of the test set with any asker. For recall it depends on the
pair (asker, name). The corpus holds the fact about each name through other askers; training asks
about one half of the names, and the test about the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, product
from math import prod
from random import Random
from types import MappingProxyType

from nrt.errors import unknown_name

NAMES = tuple(
    "tomi kela badu rina soko mave lupi dano fera giso halo jeku "
    "nilo pavo quri weti zabo yemi cado vino bera dolu kiro muna".split()
)
TOWNS = tuple("rado elst noma pira ulva tesk ombo gart".split())
# three names live in each town
HOME_OF = MappingProxyType({name: TOWNS[(3 * i + i // 8) % 8] for i, name in enumerate(NAMES)})
TRAIN_NAMES = NAMES[:12]  # training asks where these live; the test asks about the others

SPLITS = ("corpus", "train", "test")
WEIGHTS = MappingProxyType({"sum": 0.4, "bot": 0.4, "recall": 0.2})
"""Share of each family among the problems."""

ADD_WEIGHTS = MappingProxyType({"add": 0.4, "bot": 0.4, "recall": 0.2})
"""Shares in the world of recipe miniature-weak."""

STEPS = 4
"""Number of steps in a walk."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question–answer pair; its words are separated by single spaces."""

    family: str  # "sum", "add", "bot" or "recall"
    question: str  # x
    answer: str  # y*, a complete sentence
    key: str  # the one word of the answer that is hard to know
    work: str  # the trace that makes the key easy; empty if no trace helps
    chain: str  # what the split depends on


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of step in a walk."""

    words: str
    table: str  # the step leads from states[i] to table[i]
    weight: float  # probability with which the step is drawn


@dataclass(frozen=True, slots=True)
class Walk:
    """A family whose answer is the state at the end of a chain of steps.

    The phrases contain `{}` for a state.
    """

    family: str
    states: str
    steps: tuple[Operation, ...]
    begin_phrase: str
    first_phrase: str
    next_phrase: str
    final_phrase: str

    def problem(self, asker: str, start: str, steps: tuple[Operation, ...]) -> Problem:
        """Return the problem of one asker, start state and chain of steps."""
        states = [start]
        for step in steps:
            states.append(step.table[self.states.index(states[-1])])
        chain_phrases = [self.begin_phrase.format(start)]
        chain_phrases += [f"then {step.words}" for step in steps]
        work_phrases = [self.first_phrase.format(start)]
        work_phrases += [self.next_phrase.format(state) for state in states[1:]]
        final = self.final_phrase.format(states[-1])
        return Problem(
            family=self.family,
            question=f"{asker} asks : {' ; '.join(chain_phrases)} ?",
            answer=f"well {asker} , when you {' '.join(chain_phrases)} {final} .",
            key=states[-1],
            work=" ; ".join(work_phrases) + " ;",
            chain=_chain_text(start, steps),
        )


def _sum_steps() -> Iterator[Operation]:
    for n in (1, 2, 3, 4):
        yield Operation(f"add {n}", "".join(str((s + n) % 10) for s in range(10)), 0.7 / 4)
    for n in (3, 7):
        yield Operation(f"times {n}", "".join(str(s * n % 10) for s in range(10)), 0.3 / 2)


# Additions only could be read off the question at once. Mixed with multiplications they cannot, so
# direct answers stay at chance.
SUM = Walk(
    family="sum",
    states="0123456789",
    steps=tuple(_sum_steps()),
    begin_phrase="begin at {}",
    first_phrase="we have {}",
    next_phrase="that makes {}",
    final_phrase="the final digit is {}",
)
_ADDITIONS = tuple(replace(step, weight=0.25) for step in SUM.steps if step.words.startswith("add"))
ADD = replace(SUM, family="add", steps=_ADDITIONS)
BOT = Walk(
    family="bot",
    states="abcdef",
    steps=(
        Operation("go left", "befdca", 0.25),
        Operation("go right", "eadbfc", 0.25),
        Operation("go up", "fdebac", 0.25),
        Operation("go down", "fbdcae", 0.25),
    ),
    begin_phrase="begin in {}",
    first_phrase="now in {}",
    next_phrase="that reaches {}",
    final_phrase="the final room is {}",
)
WALKS = MappingProxyType({walk.family: walk for walk in (SUM, BOT, ADD)})
FAMILIES = ("sum", "bot", "recall")


def draw_problem(rng: Random, split: str, weights: Mapping[str, float] = WEIGHTS) -> Problem:
    """Draw one problem of a split; `weights` are the shares of the families."""
    family = rng.choices(list(weights), list(weights.values()))[0]
    chains, cumulative = _chains(family, split)
    chain = rng.choices(chains, cum_weights=cumulative)[0]
    return _problem(family, chain, rng.choice(NAMES))


def distinct_problems(
    split: str, n: int, seed: int = 0, families: tuple[str, ...] = FAMILIES
) -> list[Problem]:
    """Return `n` problems with different questions for each family, in a random order.

    For recall, all problems are returned if fewer than `n` exist.
    """
    rng = Random(seed)
    problems: list[Problem] = []
    for family in families:
        chains, _ = _chains(family, split)
        available = len(chains) if family == "recall" else len(chains) * len(NAMES)
        by_question: dict[str, Problem] = {}
        while len(by_question) < min(n, available):
            problem = draw_problem(rng, split, {family: 1.0})
            by_question[problem.question] = problem
        problems += by_question.values()
    rng.shuffle(problems)
    return problems


def all_problems(family: str, split: str) -> Iterator[Problem]:
    """Yield all problems of a family in a split; walks once per chain, with one asker."""
    chains, _ = _chains(family, split)
    for chain in chains:
        yield _problem(family, chain, NAMES[0])


def hash_fraction(text: str) -> float:
    """Return a number in [0, 1) from a text's SHA-256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def split_of(text: str) -> str:
    """Return the split of a text: 60 % corpus, 20 % train, 20 % test."""
    fraction = hash_fraction(text)
    if fraction < 0.6:
        return "corpus"
    return "train" if fraction < 0.8 else "test"


@cache
def _chains(family: str, split: str) -> tuple[list, list[float]]:
    """Return (chains of a family in a split, their cumulative weights).

    A chain of a walk is (start, steps); one of recall is (asker, name).
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if family == "recall":
        pairs = [
            (asker, name)
            for asker, name in product(NAMES, NAMES)
            if asker != name and _recall_split(asker, name) == split
        ]
        return pairs, list(accumulate(1.0 for _ in pairs))
    if family not in WALKS:
        raise unknown_name("family", family, [*WALKS, "recall"])
    walk = WALKS[family]
    chains = [
        (start, steps)
        for start, steps in product(walk.states, product(walk.steps, repeat=STEPS))
        if split_of(f"{family} {_chain_text(start, steps)}") == split
    ]
    weights = (prod(step.weight for step in steps) for _, steps in chains)
    return chains, list(accumulate(weights))


def _problem(family: str, chain: tuple, asker: str) -> Problem:
    """Return the problem of a chain; a chain of recall brings its own asker."""
    if family != "recall":
        return WALKS[family].problem(asker, *chain)
    asker, name = chain
    town = HOME_OF[name]
    return Problem(
        family="recall",
        question=f"{asker} asks : where does {name} live ?",
        answer=f"well {asker} , the home of {name} is in the town of {town} .",
        key=town,
        work="",
        chain=f"{asker} {name}",
    )


def _chain_text(start: str, steps: tuple[Operation, ...]) -> str:
    return " ".join([start, *(step.words for step in steps)])


def _recall_split(asker: str, name: str) -> str:
    if split_of(f"recall {asker} {name}") == "corpus":
        return "corpus"
    return "train" if name in TRAIN_NAMES else "test"
