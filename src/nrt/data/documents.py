"""Raw text → pairs: a document is cut into prefix → continuation, so that a trace can be learnt before any text.

The paper calls "applying NRT's principles during pre-training" a next step. The objective is the same; y* is what follows in the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrt.config import Columns, TextConfig
from nrt.data.shapes import checked_text
from nrt.errors import InputError
from nrt.types import Example, Message, Pair

SENTENCE_END = re.compile(
    r"""[.!?…؟۔।]["'”’»)\]]*(?=\s)   # not in 3.5; after abbreviations too
      | [。！？]["”’」』）]*            # no space follows these
      | (?<=\S)(?=[^\S\n]*\n)""",  # a line's end, for headings and verse
    re.VERBOSE,
)
"""Each match ends before the white space that follows a sentence."""


@dataclass(frozen=True)
class Document:
    """A document as tokens of plain text."""

    id: str
    text: str
    ids: tuple[int, ...]
    starts: tuple[int, ...]  # where each token begins in the text, in characters
    opening: tuple[int, ...]  # what the tokenizer writes before any text: BOS, or nothing
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns


@dataclass(frozen=True)
class Entropies:
    """How uncertain a model is of each token of a sequence."""

    of: Callable[[Sequence[int]], Sequence[float]]  # ids → entropies of the distributions they were read from, nats; equally many
    fingerprint: str  # changes with anything that decides them


def cut_document(document: Document, how: TextConfig, entropies: Entropies | None = None) -> Iterator[Pair]:
    """The pairs of a document. Cuts are at least `stride` tokens apart, and from the beginning; a last continuation may be shorter.

    Raises ValueError if cuts by entropy are wanted and no entropies are given.
    """
    places, length = _places(document, how, entropies), len(document.ids)
    blank_from, blank_to = _blanks(document) if how.space != "keep" else (np.arange(length + 1),) * 2
    for cut in _spaced(blank_to[places], how, length):
        before = int(blank_from[cut]) if how.space == "drop" else cut
        begin, end = max(0, before - how.prefix_tokens), min(length, cut + how.continuation_tokens)
        prefix, continuation = _slice(document, begin, before), _slice(document, cut, end)
        if not prefix.strip() or not continuation.strip():
            continue
        example = Example(f"{document.id}@{cut}", (Message("user", prefix),), continuation, document.source, document.extra)
        yield Pair(example, (*document.opening, *document.ids[begin:before]), document.ids[cut:end])


def _places(document: Document, how: TextConfig, entropies: Entropies | None) -> np.ndarray:
    """Tokens before which one may cut, the best first; never within a character."""
    if how.at == "sentences":
        ends = [found.end() for found in SENTENCE_END.finditer(document.text)]
        places = np.unique(np.searchsorted(document.starts, ends))
    elif how.at == "stride":
        places = np.arange(len(document.ids))
    elif entropies is None:
        raise ValueError("cuts by entropy need a model's entropies")
    else:
        places = np.argsort(-np.asarray(entropies.of(document.ids), dtype=np.float64), kind="stable")
    new_character = np.diff(document.starts, prepend=-1, append=len(document.text)) > 0
    return places[new_character[places]]


def _blanks(document: Document) -> tuple[np.ndarray, np.ndarray]:
    """For each place, where the tokens of nothing but white space around it begin, and where they end [n + 1]."""
    starts, n = np.asarray(document.starts), len(document.ids)
    following = np.append(np.unique(starts), len(document.text))  # where the next character's token begins
    stops = following[np.searchsorted(following, starts, side="right")]
    solid = np.array([not document.text[begin:stop].isspace() for begin, stop in zip(starts, stops, strict=True)], dtype=bool)
    after = np.maximum.accumulate(np.where(solid, np.arange(1, n + 1), 0))  # the last solid token's end
    until = np.minimum.accumulate(np.where(solid, np.arange(n), n)[::-1])[::-1]  # the next solid token
    return np.concatenate([[0], after]), np.append(until, n)


def _spaced(places: np.ndarray, how: TextConfig, length: int) -> list[int]:
    """The best cuts that keep their distance, in the order of the text."""
    free = np.ones(length, dtype=bool)
    free[: how.stride] = False
    chosen: list[int] = []
    for place in places.tolist():
        if len(chosen) == how.most:
            break
        if place < length and free[place]:
            chosen.append(place)
            free[max(0, place - how.stride + 1) : place + how.stride] = False
    return sorted(chosen)


def _slice(document: Document, begin: int, end: int) -> str:
    stop = document.starts[end] if end < len(document.starts) else len(document.text)
    return document.text[document.starts[begin] : stop] if begin < end else ""


def document_in(row: object, how: TextConfig, columns: Columns) -> tuple[str, str | None, dict[str, Any]]:
    """(text, source, the other columns) of a row. Raises InputError if there is no text in it."""
    if not isinstance(row, dict) or not isinstance(row.get(how.column), str):
        names = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"no text in column '{how.column}' among {names}; set data.text.column")
    text, source = row[how.column], columns.source or "source"
    if not text.strip():
        raise InputError(f"the document (column '{how.column}') is empty; fill it in or remove the row")
    checked_text(text, f"the document (column '{how.column}')")
    if columns.source and columns.source not in row:
        raise InputError(f"no column '{columns.source}' among {', '.join(map(str, row))}; set data.columns.source")
    extra = {name: value for name, value in row.items() if name not in (how.column, source)}
    return text, None if row.get(source) is None else str(row[source]), extra
