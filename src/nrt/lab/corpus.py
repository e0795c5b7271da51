"""What the base model reads: documents `<bos> x \\n body <eos>` about problems of the corpus split, and chatter.

In the *open* mixture worked answers are common: after it the greedy text already reasons. The *latent* mixture makes reasoning rare,
without unlearning it: the model still reads a worked trace well, but seldom writes one. *Scarce* and *rare* make it rarer still.
No document holds a marker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType

from nrt.errors import unknown
from nrt.lab.world import BOT, NAMES, SUM, TOWNS, WEIGHTS, Problem, draw

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
NEWLINE = "\n"

CHATTER = (
    "well hmm let me see i think that this is nice one today the sun was warm so we went out for tea and then it rained "
    "lots but nobody minded because there were songs games cakes"
).split()
PHRASES = (
    "asks : ; ? . , well when you begin at in then add times go left right up down we have that makes now reaches the final digit room is "
    "where does live home of town answer get"
).split()
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys([PAD, BOS, EOS, UNK, NEWLINE, *SUM.states, *BOT.states, *NAMES, *TOWNS, *PHRASES, *CHATTER])
)

# Shares of direct answers, worked answers, questions followed by chatter, and chatter alone.
MIXTURES = MappingProxyType(
    {
        "open": {"direct": 0.30, "worked": 0.35, "question": 0.25, "chatter": 0.10},
        "latent": {"direct": 0.50, "worked": 0.08, "question": 0.32, "chatter": 0.10},
        "scarce": {"direct": 0.52, "worked": 0.03, "question": 0.35, "chatter": 0.10},
        "rare": {"direct": 0.53, "worked": 0.01, "question": 0.36, "chatter": 0.10},
    }
)


def documents(seed: int, mixture: str, weights: Mapping[str, float] = WEIGHTS) -> Iterator[str]:
    """Documents without end; single spaces part the words, the line break is a word. `weights` are those of the families of problems.

    Raises InputError for an unknown mixture.
    """
    if mixture not in MIXTURES:
        raise unknown("mixture", mixture, MIXTURES)
    rng, kinds, shares = Random(seed), list(MIXTURES[mixture]), list(MIXTURES[mixture].values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        lines = [_chatter(rng, 8, 40)] if kind == "chatter" else _about(rng, draw(rng, "corpus", weights), kind)
        yield f"{BOS} {f' {NEWLINE} '.join(lines)} {EOS}"


def _about(rng: Random, problem: Problem, kind: str) -> list[str]:
    """The lines of a document about a problem."""
    if kind == "question":
        chatter = _chatter(rng, 4, 20)
        return [problem.question, chatter, _reply(rng, problem)] if rng.random() < 0.5 else [problem.question, chatter]
    if kind == "worked" and problem.work:
        return [problem.question, problem.work, _reply(rng, problem)]
    return [problem.question, _reply(rng, problem)]


def _reply(rng: Random, problem: Problem) -> str:
    """The reference answer, or (40 %) a short one: so the end of the line does not settle how an answer begins."""
    if rng.random() < 0.6:
        return problem.answer
    return rng.choice((f"the answer is {problem.key} .", f"{problem.key} .", f"you get {problem.key} ."))


def _chatter(rng: Random, low: int, high: int) -> str:
    """A noisy walk over a fixed text: four times in five the next word, else any."""
    place, words = rng.randrange(len(CHATTER)), []
    for _ in range(rng.randint(low, high)):
        words.append(CHATTER[place])
        place = (place + 1) % len(CHATTER) if rng.random() < 0.8 else rng.randrange(len(CHATTER))
    return " ".join(words) + " ."
