"""The pairs of a run: rows of tokenised sources that fit its limits, and a count of everything that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, overload

import numpy as np

from nrt.config import Config, TextConfig
from nrt.data.chat import Chat
from nrt.data.documents import Entropies
from nrt.data.files import Bad
from nrt.data.tokens import Tokenised, hash_of, tokenise
from nrt.errors import InputError
from nrt.types import Pair


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """Rows of several sources that fit the limits, in the order of the sources; read from disk when asked for."""

    parts: tuple[Tokenised, ...]
    kept: tuple[np.ndarray, ...]  # of each source, the rows that fit
    most_answer_tokens: int  # longer answers are cut to this

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(rows) for rows in self.kept)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and answer [rows]."""
        both = zip(self.parts, self.kept, strict=True)
        cut = self.most_answer_tokens
        return np.concatenate([part.prompt_lengths[rows] + np.minimum(part.answer_lengths[rows], cut) for part, rows in both])

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; 0 where there is no row."""
        both = zip(self.parts, self.kept, strict=True)
        return max((int(part.prompt_lengths[rows].max()) for part, rows in both if len(rows)), default=0)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, as far as answers are kept; 0 where there is no row."""
        both = zip(self.parts, self.kept, strict=True)
        longest = max((int(part.answer_lengths[rows].max()) for part, rows in both if len(rows)), default=0)
        return min(longest, self.most_answer_tokens)

    def __len__(self) -> int:
        return sum(self.sizes)

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
        for part, rows in zip(self.parts, self.kept, strict=True):
            if index < len(rows):
                pair = part[int(rows[index])]
                return replace(pair, answer_ids=pair.answer_ids[: self.most_answer_tokens])
            index -= len(rows)
        raise AssertionError("unreachable: the index was checked")


@dataclass(frozen=True)
class Encoded:
    """The pairs kept and what was lost; an example over both limits counts as a dropped prompt."""

    pairs: Pairs
    dropped_prompts: int = 0  # longer than max_prompt_tokens
    dropped_answers: int = 0  # longer than max_answer_tokens, the end of turn included
    truncated_answers: int = 0  # kept, cut to max_answer_tokens; these do not end the turn
    unknown_tokens: int = 0  # of all rows: text that the tokenizer has no token for
    bad: tuple[Bad, ...] = ()  # rows that could not be used, where data.on_bad_row is skip

    @property
    def content(self) -> str:
        """Changes with the bytes of any file that the pairs come from."""
        return hash_of([part.content for part in self.pairs.parts])

    @property
    def total(self) -> int:
        """Examples there were."""
        return len(self.pairs) + self.dropped_prompts + self.dropped_answers


def load_pairs(config: Config, kind: Literal["train", "valid"], chat: Chat, entropies: Entropies | None = None) -> Encoded:
    """The training or validation pairs. `entropies` is needed where documents are cut by entropy.

    Raises InputError for data that cannot be read, for the first bad row unless data.on_bad_row is skip, and if no row is left.
    """
    data = config.data
    for source in data.sources(kind):
        if text := source.reading(data).text:
            _check_lengths(text, config, chat)
    parts = tuple(tokenise(s, s.reading(data), chat, skip=data.on_bad_row == "skip", entropies=entropies) for s in data.sources(kind))
    long_prompts = [part.prompt_lengths > config.max_prompt_tokens for part in parts]
    long_answers = [(part.answer_lengths > config.max_answer_tokens) & ~long for part, long in zip(parts, long_prompts, strict=True)]
    drop = [p if data.truncate_answers else p | a for p, a in zip(long_prompts, long_answers, strict=True)]
    pairs = Pairs(parts, tuple(np.flatnonzero(~d) for d in drop), config.max_answer_tokens)
    prompts, answers = (int(sum(d.sum() for d in long)) for long in (long_prompts, long_answers))
    bad = tuple(bad for part in parts for bad in part.bad)
    if not len(pairs):
        if not (prompts or answers or bad):  # only documents can be good and give no pair
            raise InputError("no document is long enough to be cut; lower data.text.stride")
        lost = f" and {len(bad)} rows cannot be used, the first {bad[0]}" if bad else ""
        raise InputError(
            f"no example is left: {prompts} prompts are longer than max_prompt_tokens={config.max_prompt_tokens} and {answers} answers "
            f"longer than max_answer_tokens={config.max_answer_tokens}{lost}; raise these, or set data.truncate_answers=true"
        )
    unknown = sum(part.count(chat.unknown_id) for part in parts)
    dropped, truncated = (0, answers) if data.truncate_answers else (answers, 0)
    return Encoded(pairs, prompts, dropped, truncated, unknown, bad)


def _check_lengths(text: TextConfig, config: Config, chat: Chat) -> None:
    """Raises InputError where the limits would leave only the beginnings, or only the ends, of documents."""
    if (prompt := text.prefix_tokens + len(chat.opening)) > config.max_prompt_tokens:
        raise InputError(
            f"data.text.prefix_tokens={text.prefix_tokens} makes prompts of {prompt} tokens, more than max_prompt_tokens="
            f"{config.max_prompt_tokens}; lower the one or raise the other"
        )
    if text.continuation_tokens > config.max_answer_tokens:
        raise InputError(
            f"data.text.continuation_tokens={text.continuation_tokens} is more than max_answer_tokens={config.max_answer_tokens}; "
            "lower the one or raise the other"
        )
