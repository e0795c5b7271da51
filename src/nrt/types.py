"""The records that pass between stages.

Shape legend, used in names everywhere: B prompts, K traces a prompt, T answer tokens, Z trace tokens, V vocabulary,
N packed tokens (the tails of several rows, one after the other, without padding). Log-probabilities are in nats.

    Example --chat--> Pair --sampler--> Sample --splice--> Trace --splice--> Row --scorer--> TokenScores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor


class Role(IntEnum):
    """What a token is in `x … | START | z_1 … z_n | END | y*_1 … y*_T`."""

    PROMPT = 0
    START = 1
    TRACE = 2
    END = 3
    ANSWER = 4
    REPLY = 5  # an answer that the model itself sampled, in rows of methods that train on it


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question–answer pair as text: the turns before the reference answer, and the answer."""

    id: str  # stable over runs: "<file name>:<row number from 1>"
    messages: tuple[Message, ...]  # ends with a user turn
    answer: str
    source: str = ""  # where it comes from, or which family it belongs to
    extra: Mapping[str, Any] = field(default_factory=dict)  # what of the row is not read, untouched
    references: tuple[str, ...] = ()  # all right answers, `answer` among them, where the row has several


@dataclass(frozen=True, slots=True)
class Pair:
    """An example as token ids. `answer_ids` ends with the token that ends the turn, unless the answer was truncated."""

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sampler returns: ids exactly as sampled; the last one is a stop id unless the cap was reached."""

    ids: tuple[int, ...]
    logps: tuple[float, ...] = ()  # log-probability of each id as it was sampled; empty if the sampler has none
    version: int | None = None  # of the weights that sampled it: how many updates they had seen; None: the trainer's own


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace z, without END. What ended it: END, which the model wrote (`finished`), another end token (`end_token`), or the cap.

    Only an END that the model wrote is an action of the policy. In the other two cases END is appended.
    """

    ids: tuple[int, ...]
    finished: bool
    logps: tuple[float, ...] = ()  # log-probabilities of the actions: len(ids) + finished of them, or empty
    version: int | None = None  # see `Sample.version`
    end_token: bool = False  # another end token stopped the sample; `to_trace` removed it from `ids` unless told to keep it

    @property
    def capped(self) -> bool:
        """Sampling stopped at the cap on trace tokens."""
        return not self.finished and not self.end_token

    @property
    def n_sampled(self) -> int:
        return len(self.ids) + self.finished


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to score. Only its tail (everything after the prompt) is predicted.

    Example: prompt (5, 6), trace (7,) ended by the model, answer (8, 9) with START = 1 and END = 2 is
    Row(prompt_ids=(5, 6), tail_ids=(1, 7, 2, 8, 9), tail_roles=(START, TRACE, END, ANSWER, ANSWER), end_sampled=True).
    """

    prompt_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    tail_roles: tuple[Role, ...]
    end_sampled: bool  # whether END was an action of the policy or was appended

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.tail_ids

    @property
    def before_answer(self) -> tuple[int, ...]:
        """All ids up to the reference answer, which ends the row."""
        return self.ids[: len(self.ids) - self.tail_roles.count(Role.ANSWER)]


def answer_row(prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> Row:
    """A row whose whole tail is an answer: no marker, no trace."""
    return Row(prompt_ids, answer_ids, (Role.ANSWER,) * len(answer_ids), end_sampled=False)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The model's log-probability of each tail token and the entropy of the distribution it came from.

    Rows are packed one after the other; `lengths[r]` is the tail length of row r.
    """

    logp_N: Tensor  # float32, nats; carries a gradient when the scorer ran with one
    entropy_N: Tensor  # float32, nats, never a gradient
    lengths: tuple[int, ...]

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """(logp, entropy) of each row."""
        return list(zip(self.logp_N.split(self.lengths), self.entropy_N.split(self.lengths), strict=True))
