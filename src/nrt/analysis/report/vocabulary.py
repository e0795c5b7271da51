"""Words of traces against words of reference answers: log-odds with an informative Dirichlet prior (Figure 4 of the paper)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PRIOR_WORDS = 500
"""Weight of the prior: as many words as this, drawn from both texts together."""

_CONTROL = re.compile(r"<\|?[A-Za-z_/]+\|?>")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """One word: how often it stands in both texts, and how much likelier it is in traces."""

    word: str
    in_traces: int
    in_answers: int
    log_odds: float  # of traces against answers, nats; above 0: a word of traces
    z: float  # log_odds over its standard error


@dataclass(frozen=True)
class Vocabulary:
    """What the words of traces are, and what those of answers are."""

    trace_words: int
    answer_words: int
    risen: tuple[Word, ...]  # by falling z
    fallen: tuple[Word, ...]  # by rising z
    trace_cloud: tuple[Word, ...]  # by falling count in traces
    answer_cloud: tuple[Word, ...]  # by falling count in answers


def vocabulary(traces: Iterable[str], answers: Iterable[str], *, top: int = 15, cloud: int = 50) -> Vocabulary:
    """The words that set the traces apart from the answers, and the most frequent ones of each."""
    in_traces, in_answers = count_words(traces), count_words(answers)
    words = log_odds(in_traces, in_answers)
    by_z = sorted(words, key=lambda word: (-word.z, word.word))
    return Vocabulary(
        trace_words=in_traces.total(),
        answer_words=in_answers.total(),
        risen=tuple(word for word in by_z if word.z > 0)[:top],
        fallen=tuple(word for word in reversed(by_z) if word.z < 0)[:top],
        trace_cloud=_most(words, {word.word: word.in_traces for word in words}, cloud),
        answer_cloud=_most(words, {word.word: word.in_answers for word in words}, cloud),
    )


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Words without regard to case; control tokens such as <eos> are no words.

    >>> sorted(count_words(["Let's see: <|think_end|> 2 + 2, let's"]).items())
    [('2', 2), ("let's", 2), ('see', 1)]
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(_CONTROL.sub(" ", text).casefold()))
    return counts


def log_odds(first: Mapping[str, int], second: Mapping[str, int]) -> list[Word]:
    """Every word's log-odds in the first text against the second, in nats, and their z-scores.

    δ_w = log (y_w + α_w)/(n + α − y_w − α_w) in the first text, less the same in the second, with var δ_w = 1/(y_w + α_w) summed over
    both. α_w is the word's share in both texts together, times α = PRIOR_WORDS. Empty where a text has no words.
    Source: Monroe, Colaresi and Quinn, Fightin' Words (2008), Eqs. 15, 16, 20 and 22.
    """
    n, m = sum(first.values()), sum(second.values())
    if not n or not m:
        return []
    words = []
    for word in first.keys() | second.keys():
        y, x = first.get(word, 0), second.get(word, 0)
        prior = PRIOR_WORDS * (y + x) / (n + m)
        rest_y, rest_x = n + PRIOR_WORDS - y - prior, m + PRIOR_WORDS - x - prior
        if rest_y <= 0 or rest_x <= 0:  # the only word there is
            continue
        delta = math.log((y + prior) / rest_y) - math.log((x + prior) / rest_x)
        words.append(Word(word, y, x, delta, delta / math.sqrt(1 / (y + prior) + 1 / (x + prior))))
    return words


def _most(words: Iterable[Word], counts: Mapping[str, int], most: int) -> tuple[Word, ...]:
    ranked = sorted((word for word in words if counts[word.word]), key=lambda word: (-counts[word.word], word.word))
    return tuple(ranked[:most])
