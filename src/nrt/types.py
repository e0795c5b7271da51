"""Records that pass between stages.

Shape legend, used in names everywhere: B prompts, K traces a prompt, T answer tokens, Z trace
tokens, V vocabulary, N packed tail tokens (the tails of several rows, one after the other, without
padding), F forwarded tokens (those and the prompts before them). Log-probabilities are in nats.

    Example --chat--> Pair --sampler--> Sample --to_trace--> Trace --trace_row--> Row
    Row --scorer--> TokenScores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Role(IntEnum):
    """Role of a token in `x … | START | z_1 … z_n | END | y*_1 … y*_T`."""

    PROMPT = 0
    START = 1
    TRACE = 2
    END = 3
    ANSWER = 4
    SAMPLED_ANSWER = 5  # an answer that the model sampled, in rows of methods that train on it


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question–answer pair as text: the turns before the reference answer, and the answer."""

    id: str  # the same in every run: "<file name>:<row number from 1>"
    messages: tuple[Message, ...]  # ends with a user turn
    answer: str
    source: str = ""  # the source or family that it belongs to
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of the row that nrt ignores
    references: tuple[str, ...] = ()  # all right answers, `answer` included, if there are several


@dataclass(frozen=True, slots=True)
class Pair:
    """An example as token ids.

    `answer_ids` ends with the token that ends the turn, unless the answer was truncated.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One result of a sampler: ids exactly as sampled. The last is a stop id, except at the cap."""

    ids: tuple[int, ...]
    logps: tuple[float, ...] = ()  # of each id as it was sampled; empty if the sampler has none
    version: int | None = None  # steps taken before the sampling weights; None: the trainer's


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace z, without END.

    It ended with an END that the model wrote (`finished`), with another end token (`end_token`), or
    at the cap. Only an END that the model wrote is an action of the policy; otherwise END is
    appended.
    """

    ids: tuple[int, ...]
    finished: bool
    logps: tuple[float, ...] = ()  # of the len(ids) + finished actions; or empty
    version: int | None = None  # see `Sample.version`
    end_token: bool = False  # another end token stopped it; `to_trace` can keep that token in `ids`
    temperature: float = 1.0  # of the distribution from which it was sampled

    @property
    def capped(self) -> bool:
        """True if sampling stopped at the cap on trace tokens."""
        return not self.finished and not self.end_token

    @property
    def n_sampled(self) -> int:
        """Number of sampled tokens that are actions of the policy."""
        return len(self.ids) + self.finished


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to score. Only its tail (everything after the prompt) is predicted.

    Example: prompt (5, 6), trace (7,) ended by the model, answer (8, 9) with START = 1 and END = 2
    is Row(prompt_ids=(5, 6), tail_ids=(1, 7, 2, 8, 9), tail_roles=(START, TRACE, END, ANSWER,
    ANSWER), end_sampled=True).
    """

    prompt_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    tail_roles: tuple[Role, ...]
    end_sampled: bool  # END is an action of the policy; otherwise it was appended
    # Divides the logits of the tokens that the policy sampled; all others have temperature 1
    temperature: float = 1.0

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids of the row."""
        return self.prompt_ids + self.tail_ids

    def mask(self, *roles: Role) -> Tensor:
        """bool [tail]: the tokens of these roles."""
        return torch.tensor([role in roles for role in self.tail_roles], dtype=torch.bool)

    @property
    def sampled_mask(self) -> Tensor:
        """bool [tail]: tokens that the policy sampled, END only where the model wrote it."""
        return self.mask(Role.TRACE, Role.END) if self.end_sampled else self.mask(Role.TRACE)

    @property
    def action_mask(self) -> Tensor:
        """bool [tail]: `sampled_mask`, and the answer if the policy sampled it."""
        return self.sampled_mask | self.mask(Role.SAMPLED_ANSWER)

    @property
    def before_answer(self) -> tuple[int, ...]:
        """All ids before the reference answer, which ends the row."""
        return self.ids[: len(self.ids) - self.tail_roles.count(Role.ANSWER)]


def answer_row(prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> Row:
    """Return a row whose whole tail is an answer: no marker, no trace."""
    return Row(prompt_ids, answer_ids, (Role.ANSWER,) * len(answer_ids), end_sampled=False)


TailScores = tuple[Tensor, Tensor]
"""(log-probabilities, entropies) of a row's tail, float32 [tail] each, in nats."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probability of each tail token, and entropy of the distribution that predicts it.

    Rows are packed one after the other; `lengths[r]` is the tail length of row r.
    """

    logp_N: Tensor  # float32, nats; carries a gradient when the scorer ran with one
    entropy_N: Tensor  # float32, nats, never a gradient
    lengths: tuple[int, ...]

    def rows(self) -> list[TailScores]:
        """Split the scores into those of each row: copies, since sending a view sends all rows."""
        logps, entropies = self.logp_N.split(self.lengths), self.entropy_N.split(self.lengths)
        return [
            (logp.clone(), entropy.clone()) for logp, entropy in zip(logps, entropies, strict=True)
        ]
