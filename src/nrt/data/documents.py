"""Raw text → pairs: a document is cut into prefix → continuation, so that a trace can be learnt before any text.

The paper names it as the next step (§6, pre-training): the objective is the same, y* is what follows in the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nrt.config import TextConfig
from nrt.errors import InputError
from nrt.types import Example, Message, Pair

SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s)|[。！？]|\n+""")


@dataclass(frozen=True)
class Document:
    """A document as tokens of plain text."""

    id: str
    text: str
    ids: tuple[int, ...]
    starts: tuple[int, ...]  # where each token begins in the text, in characters
    opening: tuple[int, ...]  # what the tokenizer writes before any text: BOS, or nothing
    source: str = ""


@dataclass(frozen=True)
class Entropies:
    """How uncertain a model is of each token of a sequence."""

    of: Callable[[Sequence[int]], Sequence[float]]  # ids → entropies of the distributions they were read from, nats; equally many
    fingerprint: str  # changes with the model


def cut_document(document: Document, how: TextConfig, entropies: Entropies | None = None) -> Iterator[Pair]:
    """The pairs of a document. Cuts are at least `stride` tokens apart, and from the beginning; a last continuation may be shorter.

    Raises ValueError if cuts by entropy are wanted and no entropies are given.
    """
    for cut in _spaced(_places(document, how, entropies), how, len(document.ids)):
        begin, end = max(0, cut - how.prefix_tokens), min(len(document.ids), cut + how.continuation_tokens)
        prefix, continuation = _slice(document, begin, cut), _slice(document, cut, end)
        if not prefix.strip() or not continuation.strip():
            continue
        example = Example(f"{document.id}@{cut}", (Message("user", prefix),), continuation, document.source)
        yield Pair(example, (*document.opening, *document.ids[begin:cut]), document.ids[cut:end])


def _places(document: Document, how: TextConfig, entropies: Entropies | None) -> Sequence[int]:
    """Tokens before which one may cut, the best first."""
    if how.at == "stride":
        return range(how.stride, len(document.ids), how.stride)
    if how.at == "sentences":
        ends = [found.end() for found in SENTENCE_END.finditer(document.text)]
        return np.unique(np.searchsorted(document.starts, ends)).tolist()
    if entropies is None:
        raise ValueError("cuts by entropy need a model's entropies")
    return np.argsort(-np.asarray(entropies.of(document.ids)), kind="stable").tolist()


def _spaced(places: Sequence[int], how: TextConfig, length: int) -> list[int]:
    """The best cuts that keep their distance, in the order of the text."""
    chosen: list[int] = []
    for place in places:
        if len(chosen) == how.most:
            break
        if how.stride <= place < length and all(abs(place - other) >= how.stride for other in chosen):
            chosen.append(place)
    return sorted(chosen)


def _slice(document: Document, begin: int, end: int) -> str:
    stop = document.starts[end] if end < len(document.starts) else len(document.text)
    return document.text[document.starts[begin] : stop]


def text_of(row: object, column: str) -> str:
    """The document in a row. Raises InputError if there is none."""
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        names = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"no text in column '{column}' among {names}; set data.text.column")
    if not row[column].strip():
        raise InputError(f"the document (column '{column}') is empty; fill it in or remove the row")
    return row[column]
