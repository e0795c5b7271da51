"""Training documents of the base model: `<bos> x \\n body <eos>` about problems, and chatter.

The problems are those of the corpus split. In the *open* mixture worked answers are common: after
training on it the greedy text already reasons. The *latent* mixture makes reasoning rare without
unlearning it: the model still reads a worked trace well, but seldom writes one. *Scarce* and *rare*
make it rarer still. No document holds a marker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType

from nrt.errors import unknown_name
from nrt.lab.world import BOT, NAMES, SUM, TOWNS, WEIGHTS, Problem, draw_problem

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
NEWLINE = "\n"

CHATTER = (
    "well hmm let me see i think that this is nice one today the sun was warm so we went out for "
    "tea and then it rained lots but nobody minded because there were songs games cakes"
).split()
PHRASES = (
    "asks : ; ? . , well when you begin at in then add times go left right up down we have that "
    "makes now reaches the final digit room is where does live home of town answer get"
).split()
SPECIAL = (PAD, BOS, EOS, UNK, NEWLINE)
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys([*SPECIAL, *SUM.states, *BOT.states, *NAMES, *TOWNS, *PHRASES, *CHATTER])
)
"""All words; the position of a word is its token id."""

# shares of direct answers, worked answers, questions followed by chatter, and chatter only
MIXTURES = MappingProxyType(
    {
        "open": {"direct": 0.30, "worked": 0.35, "question": 0.25, "chatter": 0.10},
        "latent": {"direct": 0.50, "worked": 0.08, "question": 0.32, "chatter": 0.10},
        "scarce": {"direct": 0.52, "worked": 0.03, "question": 0.35, "chatter": 0.10},
        "rare": {"direct": 0.53, "worked": 0.01, "question": 0.36, "chatter": 0.10},
    }
)


def documents(seed: int, mixture: str, weights: Mapping[str, float] = WEIGHTS) -> Iterator[str]:
    """Yield documents without end.

    Single spaces separate the words, and the line break is a word. Raises InputError for an unknown
    mixture.

    Args:
        seed: seed of the documents.
        mixture: a key of MIXTURES.
        weights: weights of the problem families.
    """
    if mixture not in MIXTURES:
        raise unknown_name("mixture", mixture, MIXTURES)
    rng = Random(seed)
    kinds, shares = list(MIXTURES[mixture]), list(MIXTURES[mixture].values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        text = f" {NEWLINE} ".join(_lines(rng, kind, weights))
        yield f"{BOS} {text} {EOS}"


def _lines(rng: Random, kind: str, weights: Mapping[str, float]) -> list[str]:
    """Return the lines of a document."""
    if kind == "chatter":
        return [_chatter(rng, 8, 40)]
    problem = draw_problem(rng, "corpus", weights)
    if kind == "question":
        lines = [problem.question, _chatter(rng, 4, 20)]
        if rng.random() < 0.5:
            lines.append(_reply(rng, problem))
        return lines
    if kind == "worked" and problem.work:
        return [problem.question, problem.work, _reply(rng, problem)]
    return [problem.question, _reply(rng, problem)]


def _reply(rng: Random, problem: Problem) -> str:
    """Return the reference answer, or (40 %) a short one.

    With short answers the end of a line does not determine how the answer begins.
    """
    if rng.random() < 0.6:
        return problem.answer
    key = problem.key
    return rng.choice((f"the answer is {key} .", f"{key} .", f"you get {key} ."))


def _chatter(rng: Random, low: int, high: int) -> str:
    """Return a noisy walk over a fixed text: four times in five the next word, else any word."""
    position = rng.randrange(len(CHATTER))
    words = []
    for _ in range(rng.randint(low, high)):
        words.append(CHATTER[position])
        position = (position + 1) % len(CHATTER)
        if rng.random() >= 0.8:
            position = rng.randrange(len(CHATTER))
    return " ".join(words) + " ."
