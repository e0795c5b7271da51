"""Split text into sentences and words for IFEval.

Two of IFEval's checks count them: the number of sentences, and words in capitals. As in lm-eval,
NLTK's Punkt is used if its data are installed. They are a download, so machines without a network
use the splitter here: Punkt's rules, with a list of abbreviations instead of Punkt's statistics. An
abbreviation that the list lacks ends a sentence.
"""

from __future__ import annotations

import functools
import re
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from nrt.errors import InputError, install_hint

ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof rev hon gen col lt capt cmdr sgt maj sen rep gov st mt ft ave blvd rd jr sr
    inc ltd co corp bros dept univ est vs etc al cf viz approx fig vol pp ed eds op cit oz lb lbs hr
    hrs min sec jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ph.d
    """.split()
)
STARTERS = frozenset(
    """
    a after all also although an and another are as at because before both but by can do each even
    every finally first for from he her here his how however i if in instead is it its just later
    let many most my next no not now of on once one or our over several she since so some still such
    that the their then there these they this those though thus to today under until we what when
    where whether which while who why with yes yet you your
    """.split()
)
"""Words that start a sentence more often than they follow an abbreviation or initial; no names."""

CLOSING = "\"'”’»)]}*_"


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text; as in Punkt, a line break counts as a space.

    >>> split_sentences("Mr. J. Smith paid $3.50 in the U.S. He left... and came back? “Yes!” etc.")
    ['Mr. J. Smith paid $3.50 in the U.S.', 'He left... and came back?', '“Yes!”', 'etc.']
    """
    sentences, start = [], 0
    pieces = [*re.finditer(r"\S+", text)]
    for piece, following in zip_longest(pieces, pieces[1:]):
        core = piece[0].rstrip(CLOSING)
        word = core.rstrip(".!?")
        mark = core[len(word) :]
        if _ends_sentence(word, mark, following[0] if following else ""):
            sentences.append(text[start : piece.end()].strip())
            start = piece.end()
    last = text[start:].strip()
    return [*sentences, last] if last else sentences


def _ends_sentence(word: str, mark: str, following: str) -> bool:
    """Return True if a sentence ends after this word with its punctuation mark."""
    word = re.sub(r"^\W+", "", word).lower()
    following = re.sub(r"^\W+", "", following)
    if not mark:
        return False
    if "!" in mark or "?" in mark:
        return True
    if len(mark) > 1:  # an ellipsis
        return following[:1].isupper()
    if word.isdigit():
        return not following[:1].islower()
    # Abbreviations, initials, and forms such as U.S and e.g.
    if word in ABBREVIATIONS or re.fullmatch(r"[^\W\d](\.[^\W\d])*", word):
        return following[:1].isupper() and re.split(r"\W", following.lower())[0] in STARTERS
    return True


def tokenize_words(text: str) -> list[str]:
    """Tokenize text as `nltk.word_tokenize` does, with the sentences of `split_sentences`."""
    from nltk.tokenize import NLTKWordTokenizer

    words: list[str] = []
    for sentence in split_sentences(text):
        words.extend(NLTKWordTokenizer().tokenize(sentence))
    return words


def splitter_name() -> str:
    """Return the name of the sentence splitter in use: "NLTK's Punkt" or "nrt's own"."""
    return "NLTK's Punkt" if _has_punkt() else "nrt's own"


@functools.cache
def ifeval_checks() -> Any:
    """Return lm-eval's module with IFEval's checks, imported without a download.

    Raises InputError if a package is missing.
    """
    nltk = _nltk()
    import langdetect

    langdetect.DetectorFactory.seed = 0  # without a seed, its guesses differ from call to call
    find = nltk.data.find
    # On import lm-eval looks for Punkt's data and downloads them if they are missing.
    nltk.data.find = lambda *args, **kwargs: ""
    try:
        from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.data.find = find
    if not _has_punkt():
        replacements = {
            "count_sentences": lambda text: len(split_sentences(text)),
            "nltk": SimpleNamespace(word_tokenize=tokenize_words, tokenize=nltk.tokenize),
        }
        for name, replacement in replacements.items():
            setattr(instructions_util, name, replacement)
    return utils


@functools.cache
def _has_punkt() -> bool:
    try:
        _nltk().data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _nltk() -> Any:
    try:
        import immutabledict  # noqa: F401
        import langdetect  # noqa: F401
        import nltk
        import nltk.data
    except ModuleNotFoundError as error:
        raise InputError(
            f"IFEval's checks need the package {error.name}; {install_hint('eval')}"
        ) from None
    return nltk
