"""Sentences and words, for the two of IFEval's checks that count them (the number of sentences, words in capitals).

NLTK's Punkt is used where its data are installed, as in lm-eval. They come by a download, so there is a splitter for machines without
a network: Punkt's own rules, with a list of abbreviations where Punkt has statistics. What that list lacks ends a sentence.
"""

from __future__ import annotations

import functools
import re
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from nrt.errors import InputError

ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof rev hon gen col lt capt cmdr sgt maj sen rep gov st mt ft ave blvd rd jr sr inc ltd co corp bros dept univ est
    vs etc al cf viz approx fig vol pp ed eds op cit oz lb lbs hr hrs min sec jan feb mar apr jun jul aug sep sept oct nov dec mon tue
    tues wed thu thurs fri ph.d
    """.split()
)
STARTERS = frozenset(
    """
    a after all also although an and another are as at because before both but by can do each even every finally first for from he her
    here his how however i if in instead is it its just later let many most my next no not now of on once one or our over several she
    since so some still such that the their then there these they this those though thus to today under until we what when where
    whether which while who why with yes yet you your
    """.split()
)
"""What begins a sentence more often than it follows an abbreviation or an initial: no name is among them."""

CLOSING = "\"'”’»)]}*_"


def split(text: str) -> list[str]:
    """The sentences of an English text; a line break is a space like any other, as to Punkt.

    >>> split("Mr. J. Smith paid $3.50 in the U.S. He left... and came back? “Yes!” etc.")
    ['Mr. J. Smith paid $3.50 in the U.S.', 'He left... and came back?', '“Yes!”', 'etc.']
    """
    found, start = [], 0
    pieces = [*re.finditer(r"\S+", text)]
    for piece, following in zip_longest(pieces, pieces[1:]):
        core = piece[0].rstrip(CLOSING)
        word = core.rstrip(".!?")
        if _ends(word, core[len(word) :], following[0] if following else ""):
            found.append(text[start : piece.end()].strip())
            start = piece.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def _ends(word: str, mark: str, following: str) -> bool:
    """Whether a sentence ends between this word with its mark and what follows."""
    word, following = re.sub(r"^\W+", "", word).lower(), re.sub(r"^\W+", "", following)
    if not mark:
        return False
    if "!" in mark or "?" in mark:
        return True
    if len(mark) > 1:  # an ellipsis
        return following[:1].isupper()
    if word.isdigit():
        return not following[:1].islower()
    if word in ABBREVIATIONS or re.fullmatch(r"[^\W\d](\.[^\W\d])*", word):  # an initial, or such as U.S and e.g
        return following[:1].isupper() and re.split(r"\W", following.lower())[0] in STARTERS
    return True


def words(text: str) -> list[str]:
    """As `nltk.word_tokenize`, on our sentences."""
    from nltk.tokenize import NLTKWordTokenizer

    return [word for sentence in split(text) for word in NLTKWordTokenizer().tokenize(sentence)]


def splitter() -> str:
    """Which splitter is used here: "NLTK's Punkt" or "nrt's own"."""
    return "NLTK's Punkt" if _has_punkt() else "nrt's own"


@functools.cache
def ifeval_checks() -> Any:
    """lm-eval's module of IFEval's checks; importing it here downloads nothing.

    Raises InputError where a package is missing.
    """
    nltk = _nltk()
    import langdetect

    langdetect.DetectorFactory.seed = 0  # else it guesses differently each time
    find = nltk.data.find
    nltk.data.find = lambda *args, **kwargs: ""  # lm-eval looks for Punkt's data as it is imported, and downloads what it does not find
    try:
        from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.data.find = find
    if not _has_punkt():
        replaced = {
            "count_sentences": lambda text: len(split(text)),
            "nltk": SimpleNamespace(word_tokenize=words, tokenize=nltk.tokenize),
        }
        for name, own in replaced.items():
            setattr(instructions_util, name, own)
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
        raise InputError(f"IFEval's checks need the package {error.name}; pip install 'native-reasoning[eval]'") from None
    return nltk
