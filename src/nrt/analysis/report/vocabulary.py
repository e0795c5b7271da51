"""Words of traces against words of reference answers (Figure 4 of the paper).

The comparison is by log-odds with an informative Dirichlet prior.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PRIOR_WORDS = 500
"""Weight of the prior, in words drawn from both texts together."""

_CONTROL_TOKEN = re.compile(r"<\|?[A-Za-z_/]+\|?>")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class WordStats:
    """One word's counts in traces and answers, and its log-odds."""

    word: str
    in_traces: int
    in_answers: int
    log_odds: float  # of traces against answers, nats; above 0: likelier in traces
    z: float  # log_odds over its standard error


@dataclass(frozen=True)
class Vocabulary:
    """The words that distinguish traces from answers, and the most frequent words of each."""

    trace_words: int
    answer_words: int
    risen: tuple[WordStats, ...]  # likelier in traces, by falling z
    fallen: tuple[WordStats, ...]  # likelier in answers, by rising z
    trace_cloud: tuple[WordStats, ...]  # by falling count in traces
    answer_cloud: tuple[WordStats, ...]  # by falling count in answers


def compare_words(
    traces: Iterable[str], answers: Iterable[str], *, top: int = 15, cloud: int = 50
) -> Vocabulary:
    """Return the `top` most distinctive words of each side, and the `cloud` most frequent ones."""
    in_traces, in_answers = count_words(traces), count_words(answers)
    words = log_odds(in_traces, in_answers)
    by_z = sorted(words, key=lambda word: (-word.z, word.word))
    return Vocabulary(
        trace_words=in_traces.total(),
        answer_words=in_answers.total(),
        risen=tuple(word for word in by_z if word.z > 0)[:top],
        fallen=tuple(word for word in reversed(by_z) if word.z < 0)[:top],
        trace_cloud=_most_frequent(words, {word.word: word.in_traces for word in words}, cloud),
        answer_cloud=_most_frequent(words, {word.word: word.in_answers for word in words}, cloud),
    )


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count words, ignoring case and control tokens such as <eos>.

    >>> sorted(count_words(["Let's see: <|think_end|> 2 + 2, let's"]).items())
    [('2', 2), ("let's", 2), ('see', 1)]
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(_CONTROL_TOKEN.sub(" ", text).casefold()))
    return counts


def log_odds(traces: Mapping[str, int], answers: Mapping[str, int]) -> list[WordStats]:
    """Return every word's log-odds in traces against answers, in nats, and its z-score.

    δ_w = log (y_w + α_w)/(n + α − y_w − α_w) in traces, less the same in answers, with
    var δ_w = 1/(y_w + α_w) summed over both. α_w is the word's share in both texts together, times
    α = PRIOR_WORDS. Returns [] if a text has no words.
    Source: Monroe, Colaresi and Quinn, Fightin' Words (2008), Eqs. 15, 16, 20 and 22.
    """
    n_traces, n_answers = sum(traces.values()), sum(answers.values())
    if not n_traces or not n_answers:
        return []
    words = []
    for word in traces.keys() | answers.keys():
        y_traces, y_answers = traces.get(word, 0), answers.get(word, 0)
        prior = PRIOR_WORDS * (y_traces + y_answers) / (n_traces + n_answers)
        others_traces = n_traces + PRIOR_WORDS - y_traces - prior
        others_answers = n_answers + PRIOR_WORDS - y_answers - prior
        if others_traces <= 0 or others_answers <= 0:  # this is the only word
            continue
        log_odds_traces = math.log((y_traces + prior) / others_traces)
        log_odds_answers = math.log((y_answers + prior) / others_answers)
        delta = log_odds_traces - log_odds_answers
        z = delta / math.sqrt(1 / (y_traces + prior) + 1 / (y_answers + prior))
        words.append(WordStats(word, y_traces, y_answers, delta, z))
    return words


def _most_frequent(
    words: Iterable[WordStats], counts: Mapping[str, int], limit: int
) -> tuple[WordStats, ...]:
    counted = (word for word in words if counts[word.word])
    ranked = sorted(counted, key=lambda word: (-counts[word.word], word.word))
    return tuple(ranked[:limit])
