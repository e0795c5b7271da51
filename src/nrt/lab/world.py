"""The miniature's world: three families of problems, in a language of about 130 words, as question–answer pairs.

- *sum*: a digit, then four operations modulo 10 (*add*: additions only). *bot*: a room, then four moves. Both are a `Walk`: a state and
  four steps, each step a table from state to state. The answer repeats the question and names the last state, the one hard token (the
  *key*). A trace that writes every state on the way makes it easy. A step takes as many words in the question as in the trace, so that a
  small attention model finds each operand at a constant distance.
- *recall*: in which town does somebody live? No trace can help.

No problem of one split is in another. For walks the split depends on the *chain* (state and steps) alone, so a chain of the test set was
never seen with any asker. For recall it depends on the pair (asker, name): the corpus holds each name's fact through other askers,
training asks about one half of the names and the test about the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import accumulate, product
from math import prod
from pathlib import Path
from random import Random
from types import MappingProxyType

from nrt.durable import write_file
from nrt.errors import unknown

NAMES = tuple(
    "tomi kela badu rina soko mave lupi dano fera giso halo jeku nilo pavo quri weti zabo yemi cado vino bera dolu kiro muna".split()
)
TOWNS = tuple("rado elst noma pira ulva tesk ombo gart".split())
HOME_OF = MappingProxyType({name: TOWNS[(3 * i + i // 8) % 8] for i, name in enumerate(NAMES)})  # three names a town
TRAIN_NAMES = NAMES[:12]  # training asks where these live, the test where the others live

SPLITS = ("corpus", "train", "test")
WEIGHTS = MappingProxyType({"sum": 0.4, "bot": 0.4, "recall": 0.2})
ADD_WEIGHTS = MappingProxyType({"add": 0.4, "bot": 0.4, "recall": 0.2})  # the world of the weak reader
STEPS = 4  # of a walk


@dataclass(frozen=True, slots=True)
class Problem:
    """One question–answer pair; single spaces part its words."""

    family: str  # "sum", "bot" or "recall"
    question: str  # x
    answer: str  # y*, a whole sentence
    key: str  # the one word of the answer that is hard to know
    work: str  # the trace that makes it easy; empty where no trace helps
    chain: str  # what the split depends on


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: its words, its table (state i goes to `to[i]`), how often it is drawn."""

    words: str
    to: str
    weight: float


@dataclass(frozen=True, slots=True)
class Walk:
    """A family whose answer is the state at the end of a chain of steps; the phrases take a state."""

    family: str
    states: str
    steps: tuple[Step, ...]
    begin: str
    now: str
    then: str
    final: str

    def problem(self, asker: str, start: str, steps: tuple[Step, ...]) -> Problem:
        states = [start]
        for step in steps:
            states.append(step.to[self.states.index(states[-1])])
        begin, words = self.begin.format(start), [f"then {step.words}" for step in steps]
        return Problem(
            family=self.family,
            question=f"{asker} asks : {' ; '.join([begin, *words])} ?",
            answer=f"well {asker} , when you {' '.join([begin, *words])} {self.final.format(states[-1])} .",
            key=states[-1],
            work=" ; ".join([self.now.format(start), *(self.then.format(state) for state in states[1:])]) + " ;",
            chain=_chain(start, steps),
        )


# Adding alone could be read off the question at once; mixed with multiplication it cannot: direct answers stay at chance.
SUM = Walk(
    family="sum",
    states="0123456789",
    steps=(
        *(Step(f"add {n}", "".join(str((s + n) % 10) for s in range(10)), 0.7 / 4) for n in (1, 2, 3, 4)),
        *(Step(f"times {n}", "".join(str(s * n % 10) for s in range(10)), 0.3 / 2) for n in (3, 7)),
    ),
    begin="begin at {}",
    now="we have {}",
    then="that makes {}",
    final="the final digit is {}",
)
ADD = replace(SUM, family="add", steps=tuple(replace(step, weight=0.25) for step in SUM.steps if step.words.startswith("add")))
BOT = Walk(
    family="bot",
    states="abcdef",
    steps=(
        Step("go left", "befdca", 0.25),
        Step("go right", "eadbfc", 0.25),
        Step("go up", "fdebac", 0.25),
        Step("go down", "fbdcae", 0.25),
    ),
    begin="begin in {}",
    now="now in {}",
    then="that reaches {}",
    final="the final room is {}",
)
WALKS = MappingProxyType({walk.family: walk for walk in (SUM, BOT, ADD)})
FAMILIES = ("sum", "bot", "recall")


def draw(rng: Random, split: str, weights: Mapping[str, float] = WEIGHTS) -> Problem:
    """One problem of a split; the family is drawn by `weights`, the rest by `rng`."""
    family = rng.choices(list(weights), list(weights.values()))[0]
    chains, cumulative = _chains(family, split)
    chain = rng.choices(chains, cum_weights=cumulative)[0]
    return _problem(family, chain, rng.choice(NAMES))


def distinct(split: str, n: int, seed: int = 0, families: tuple[str, ...] = FAMILIES) -> list[Problem]:
    """`n` different questions of each family in a random order; of recall as many as exist, if that is fewer."""
    rng = Random(seed)
    problems: list[Problem] = []
    for family in families:
        chains, _ = _chains(family, split)
        limit = min(n, len(chains) if family == "recall" else len(chains) * len(NAMES))
        found: dict[str, Problem] = {}
        while len(found) < limit:
            problem = draw(rng, split, {family: 1.0})
            found[problem.question] = problem
        problems += found.values()
    rng.shuffle(problems)
    return problems


def write_pairs(path: str | Path, split: str, n: int, seed: int = 0, weights: Mapping[str, float] = WEIGHTS) -> int:
    """Writes a JSONL file with the columns question, answer, family, key, work; returns the number of rows.

    For "train" (and "corpus") `n` rows are drawn by `weights`. For "test" `n` is the number of different questions of each family in
    `weights` (recall: as many as exist, if fewer), shuffled, so that the first rows are a fair sample.
    """
    problems = _problems(split, n, seed, weights)
    _write(path, ({key: value for key, value in asdict(problem).items() if key != "chain"} for problem in problems))
    return len(problems)


def write_documents(path: str | Path, split: str, n: int, seed: int = 0, weights: Mapping[str, float] = WEIGHTS) -> int:
    """The same problems as `write_pairs` as raw text: the column text holds question, line break and answer.

    The other columns (family, key, work) are for the observer and for results by family; nothing trains on them.
    """
    problems = _problems(split, n, seed, weights)
    _write(path, ({"text": f"{p.question} \n {p.answer}", "family": p.family, "key": p.key, "work": p.work} for p in problems))
    return len(problems)


def _problems(split: str, n: int, seed: int, weights: Mapping[str, float]) -> list[Problem]:
    rng = Random(seed)
    return distinct(split, n, seed, tuple(weights)) if split == "test" else [draw(rng, split, weights) for _ in range(n)]


def _write(path: str | Path, rows: Iterable[Mapping[str, str]]) -> None:
    """As JSONL, at once: another process may be reading it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(row) + "\n" for row in rows))


def every(family: str, split: str) -> Iterator[Problem]:
    """All problems of a family in a split; walks once for each chain, with one asker."""
    for chain in _chains(family, split)[0]:
        yield _problem(family, chain, NAMES[0])


@cache
def _chains(family: str, split: str) -> tuple[list, list[float]]:
    """All chains of a family in a split (for recall: pairs of asker and name) and their cumulative weights."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if family == "recall":
        pairs = [pair for pair in product(NAMES, NAMES) if pair[0] != pair[1] and _recall_split(*pair) == split]
        return pairs, list(accumulate(1.0 for _ in pairs))
    if family not in WALKS:
        raise unknown("family", family, [*WALKS, "recall"])
    walk = WALKS[family]
    chains = [
        (start, steps)
        for start, steps in product(walk.states, product(walk.steps, repeat=STEPS))
        if _third(f"{family} {_chain(start, steps)}") == split
    ]
    return chains, list(accumulate(prod(step.weight for step in steps) for _, steps in chains))


def _problem(family: str, chain: tuple, asker: str) -> Problem:
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


def _chain(start: str, steps: tuple[Step, ...]) -> str:
    return " ".join([start, *(step.words for step in steps)])


def _recall_split(asker: str, name: str) -> str:
    split = _third(f"recall {asker} {name}")
    return split if split == "corpus" else "train" if name in TRAIN_NAMES else "test"


def _third(text: str) -> str:
    """The split of a text, 60/20/20 %."""
    share = share_of(text)
    return "corpus" if share < 0.6 else "train" if share < 0.8 else "test"


def share_of(text: str) -> float:
    """A number in [0, 1) from a text's SHA-256: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
