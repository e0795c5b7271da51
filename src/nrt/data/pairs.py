"""The pairs of a run: the rows of its sources that fit its limits, with counts of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal, overload

import numpy as np

from nrt.config import Config, TextConfig
from nrt.data.cache import json_hash, tokenise
from nrt.data.chat import Chat
from nrt.data.documents import EntropyFunction
from nrt.data.rows import BadRow
from nrt.data.token_cache import TokenCache
from nrt.errors import InputError
from nrt.types import Pair


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """Rows of several sources that fit the limits, one source after the other.

    Each access reads the row from disk.
    """

    caches: tuple[TokenCache, ...]  # one per source
    kept_rows: tuple[np.ndarray, ...]  # per source, the numbers of the rows that fit
    max_answer_tokens: int  # longer answers are cut to this

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(rows) for rows in self.kept_rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and answer [rows]."""
        lengths = [
            cache.prompt_lengths[rows]
            + np.minimum(cache.answer_lengths[rows], self.max_answer_tokens)
            for cache, rows in zip(self.caches, self.kept_rows, strict=True)
        ]
        return np.concatenate(lengths)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; 0 without rows."""
        return self._longest([cache.prompt_lengths for cache in self.caches])

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer after the cut to `max_answer_tokens`; 0 without rows."""
        longest = self._longest([cache.answer_lengths for cache in self.caches])
        return min(longest, self.max_answer_tokens)

    def _longest(self, lengths: list[np.ndarray]) -> int:
        longest = 0
        for source_lengths, rows in zip(lengths, self.kept_rows, strict=True):
            if len(rows):
                longest = max(longest, int(source_lengths[rows].max()))
        return longest

    def __len__(self) -> int:
        return sum(self.sizes)

    def first(self, n: int) -> tuple[Pair, ...]:
        """Return the first rows of each source, `n` in all, or all if there are fewer.

        Each source gives the same number, or all its rows if it has fewer.
        """
        left, sources = min(n, len(self)), len(self.sizes)
        counts = [0] * sources
        for place, source in enumerate(sorted(range(sources), key=lambda i: self.sizes[i])):
            counts[source] = min(self.sizes[source], left // (sources - place))
            left -= counts[source]
        starts = accumulate((0, *self.sizes[:-1]))
        return tuple(
            self[start + i]
            for start, count in zip(starts, counts, strict=True)
            for i in range(count)
        )

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        for cache, rows in zip(self.caches, self.kept_rows, strict=True):
            if index < len(rows):
                pair = cache[int(rows[index])]
                return replace(pair, answer_ids=pair.answer_ids[: self.max_answer_tokens])
            index -= len(rows)
        raise AssertionError("unreachable: the index was checked")


@dataclass(frozen=True)
class LoadedPairs:
    """The pairs of a run, and what was lost.

    An example over both limits counts as a dropped prompt.
    """

    pairs: Pairs
    dropped_prompts: int = 0  # longer than max_prompt_tokens
    dropped_answers: int = 0  # longer than max_answer_tokens, the end of turn included
    truncated_answers: int = 0  # kept, cut to max_answer_tokens; these do not end the turn
    unknown_tokens: int = 0  # in all rows: text that the tokenizer has no token for
    bad: tuple[BadRow, ...] = ()  # rows that cannot be used, where data.on_bad_row is skip

    @property
    def content_hash(self) -> str:
        """Hash that changes with the bytes of any file that the pairs come from."""
        return json_hash([cache.content_hash for cache in self.pairs.caches])

    @property
    def total(self) -> int:
        """Examples before the limits."""
        return len(self.pairs) + self.dropped_prompts + self.dropped_answers


def load_pairs(
    config: Config,
    kind: Literal["train", "valid"],
    chat: Chat,
    entropies: EntropyFunction | None = None,
) -> LoadedPairs:
    """Return the training or validation pairs; cuts of documents by entropy need `entropies`.

    Raises InputError for data that cannot be read, for the first bad row unless data.on_bad_row is
    skip, and if no row is left.
    """
    data = config.data
    skip = data.on_bad_row == "skip"
    sources = [(source, source.rows_config(data)) for source in data.sources(kind)]
    for _, reading in sources:
        if reading.text:
            _check_lengths(reading.text, config, chat)
    caches = tuple(
        tokenise(source, reading, chat, skip=skip, entropies=entropies)
        for source, reading in sources
    )
    kept_rows: list[np.ndarray] = []
    long_prompts = long_answers = 0
    for cache in caches:
        prompt_is_long = cache.prompt_lengths > config.max_prompt_tokens
        answer_is_long = (cache.answer_lengths > config.max_answer_tokens) & ~prompt_is_long
        long_prompts += int(prompt_is_long.sum())
        long_answers += int(answer_is_long.sum())
        is_dropped = prompt_is_long if data.truncate_answers else prompt_is_long | answer_is_long
        kept_rows.append(np.flatnonzero(~is_dropped))
    pairs = Pairs(caches, tuple(kept_rows), config.max_answer_tokens)
    bad = tuple(row for cache in caches for row in cache.bad)
    if not len(pairs):
        raise _nothing_left(config, long_prompts, long_answers, bad)
    return LoadedPairs(
        pairs,
        dropped_prompts=long_prompts,
        dropped_answers=0 if data.truncate_answers else long_answers,
        truncated_answers=long_answers if data.truncate_answers else 0,
        unknown_tokens=sum(cache.count(chat.unknown_id) for cache in caches),
        bad=bad,
    )


def _nothing_left(
    config: Config, long_prompts: int, long_answers: int, bad: Sequence[BadRow]
) -> InputError:
    if not (long_prompts or long_answers or bad):  # only documents can be good and give no pair
        return InputError("no document is long enough to be cut; lower data.text.stride")
    reasons, fixes = [], []
    if long_prompts:
        reasons.append(
            f"{long_prompts} prompts are longer than max_prompt_tokens={config.max_prompt_tokens}"
        )
        fixes.append("raise max_prompt_tokens")
    if long_answers:
        reasons.append(
            f"{long_answers} answers are longer than max_answer_tokens={config.max_answer_tokens}"
        )
        fixes.append("raise max_answer_tokens, or set data.truncate_answers=true")
    if bad:
        reasons.append(f"{len(bad)} rows cannot be used, the first {bad[0]}")
        fixes.append("correct the rows")
    return InputError(f"no example is left: {', '.join(reasons)}; {'; '.join(fixes)}")


def _check_lengths(text: TextConfig, config: Config, chat: Chat) -> None:
    """Raise InputError if the limits would keep only the beginnings, or the ends, of documents."""
    prompt_tokens = text.prefix_tokens + len(chat.opening)
    if prompt_tokens > config.max_prompt_tokens:
        raise InputError(
            f"data.text.prefix_tokens={text.prefix_tokens} makes prompts of {prompt_tokens} "
            f"tokens, more than max_prompt_tokens={config.max_prompt_tokens}; "
            "lower the first or raise the second"
        )
    if text.continuation_tokens > config.max_answer_tokens:
        raise InputError(
            f"data.text.continuation_tokens={text.continuation_tokens} is more than "
            f"max_answer_tokens={config.max_answer_tokens}; lower the first or raise the second"
        )
