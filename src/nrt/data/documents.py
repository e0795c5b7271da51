"""Raw text → pairs: a document is cut into prefix → continuation, to learn traces before any text.

The paper calls "applying NRT's principles during pre-training" a next step. The objective is the
same; y* is the text that follows in the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrt.config import ColumnsConfig, TextConfig
from nrt.data.values import column_names, to_text
from nrt.errors import InputError
from nrt.types import Example, Message, Pair

SENTENCE_END = re.compile(
    r"""[.!?…؟۔।]["'”’»)\]]*(?=\s)   # not in 3.5; after abbreviations too
      | [。！？]["”’」』）]*            # no space follows these
      | (?<=\S)(?=[^\S\n]*\n)""",  # the end of a line, for headings and verse
    re.VERBOSE,
)
"""Each match ends before the white space that follows a sentence."""


@dataclass(frozen=True)
class Document:
    """A document as tokens of plain text."""

    id: str
    text: str
    ids: tuple[int, ...]
    starts: tuple[int, ...]  # the character at which each token begins
    opening: tuple[int, ...]  # ids that the tokenizer writes before any text: BOS, or none
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns


@dataclass(frozen=True)
class EntropyFunction:
    """Function from token ids to the model's uncertainty of each token."""

    compute: Callable[[Sequence[int]], Sequence[float]]
    """ids [n] → entropies [n] of the distributions that predict them, in nats."""
    fingerprint: str  # changes with anything that affects the entropies


def cut_document(
    document: Document, config: TextConfig, entropies: EntropyFunction | None = None
) -> Iterator[Pair]:
    """Yield the pairs of a document.

    Cuts are at least `stride` tokens apart, and at least as far from the beginning. The last
    continuation may be shorter than the others.

    Raises ValueError if the config cuts by entropy and `entropies` is None.
    """
    candidates = _candidate_cuts(document, config, entropies)
    length = len(document.ids)
    if config.space == "keep":
        blank_starts = blank_ends = np.arange(length + 1)
    else:
        blank_starts, blank_ends = _blank_ranges(document)
    for cut in _spread_cuts(blank_ends[candidates], config, length):
        prefix_end = int(blank_starts[cut]) if config.space == "drop" else cut
        prefix_start = max(0, prefix_end - config.prefix_tokens)
        continuation_end = min(length, cut + config.continuation_tokens)
        prefix = _text_of(document, prefix_start, prefix_end)
        continuation = _text_of(document, cut, continuation_end)
        if not prefix.strip() or not continuation.strip():
            continue
        turns = (Message("user", prefix),)
        row_id = f"{document.id}@{cut}"
        example = Example(row_id, turns, continuation, document.source, document.extra)
        prompt_ids = (*document.opening, *document.ids[prefix_start:prefix_end])
        yield Pair(example, prompt_ids, document.ids[cut:continuation_end])


def _candidate_cuts(
    document: Document, config: TextConfig, entropies: EntropyFunction | None
) -> np.ndarray:
    """Return the tokens before which a cut may be, best first; never inside a character."""
    if config.at == "sentences":
        ends = [match.end() for match in SENTENCE_END.finditer(document.text)]
        cuts = np.unique(np.searchsorted(document.starts, ends))
    elif config.at == "stride":
        cuts = np.arange(len(document.ids))
    elif entropies is None:
        raise ValueError("cuts by entropy need the entropies of a model")
    else:
        values = np.asarray(entropies.compute(document.ids), dtype=np.float64)
        cuts = np.argsort(-values, kind="stable")
    begins_character = np.diff(document.starts, prepend=-1, append=len(document.text)) > 0
    return cuts[begins_character[cuts]]


def _blank_ranges(document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Return (begin, end) of the blank tokens around each position [n + 1 each].

    A token is blank if its text is nothing but white space.
    """
    starts, n = np.asarray(document.starts), len(document.ids)
    # Tokens of one character begin at the same place: each ends where the next character begins.
    next_starts = np.append(np.unique(starts), len(document.text))
    stops = next_starts[np.searchsorted(next_starts, starts, side="right")]
    is_solid = np.array(
        [
            not document.text[start:stop].isspace()
            for start, stop in zip(starts, stops, strict=True)
        ],
        dtype=bool,
    )
    # Up to each token, the end of the last solid one; from each token on, the next solid one.
    solid_ends = np.maximum.accumulate(np.where(is_solid, np.arange(1, n + 1), 0))
    next_solid = np.minimum.accumulate(np.where(is_solid, np.arange(n), n)[::-1])[::-1]
    return np.concatenate([[0], solid_ends]), np.append(next_solid, n)


def _spread_cuts(candidates: np.ndarray, config: TextConfig, length: int) -> list[int]:
    """Return the best cuts that keep their distance, in the order of the text."""
    is_free = np.ones(length, dtype=bool)
    is_free[: config.stride] = False
    chosen: list[int] = []
    for cut in candidates.tolist():
        if len(chosen) == config.most:
            break
        if cut < length and is_free[cut]:
            chosen.append(cut)
            is_free[max(0, cut - config.stride + 1) : cut + config.stride] = False
    return sorted(chosen)


def _text_of(document: Document, begin: int, end: int) -> str:
    """Return the text of tokens `begin` … `end − 1`."""
    if begin >= end:
        return ""
    is_last = end >= len(document.starts)
    stop = len(document.text) if is_last else document.starts[end]
    return document.text[document.starts[begin] : stop]


def read_document(
    row: object, config: TextConfig, columns: ColumnsConfig
) -> tuple[str, str | None, dict[str, Any]]:
    """Return (text, source, the other columns) of a row.

    Raises InputError if the row has no text.
    """
    if not isinstance(row, dict) or not isinstance(row.get(config.column), str):
        names = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"no text in column '{config.column}' among {names}; set data.text.column")
    text = row[config.column]
    where = f"the document (column '{config.column}')"
    if not text.strip():
        raise InputError(f"{where} is empty; fill it in or remove the row")
    to_text(text, where)
    if columns.source and columns.source not in row:
        raise InputError(
            f"no column '{columns.source}' among {column_names(row)}; set data.columns.source"
        )
    source_column = columns.source or "source"
    source = row.get(source_column)
    used = (config.column, source_column)
    extra = {name: value for name, value in row.items() if name not in used}
    return text, None if source is None else str(source), extra
