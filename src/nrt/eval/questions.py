"""What a model is asked, and what it replied: the two records of an evaluation, and where replies are kept.

A reply is found again by everything that decided it (`Question.key`), so a suite that was killed, or is asked for more rows, another
seed or another wording, does only what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nrt.durable import open_to_append
from nrt.errors import InputError
from nrt.types import Message


@dataclass(frozen=True)
class Question:
    """One row of one task. Answers are generated, or, where there are choices, the likelihood of each is wanted."""

    task: str
    messages: tuple[Message, ...]
    opening: str = ""  # what every answer begins with, after the trace
    choices: tuple[str, ...] = ()
    n: int = 1  # answers wanted, each after a trace of its own
    max_trace_tokens: int = 2048
    max_answer_tokens: int = 2048
    until: tuple[str, ...] = ()  # an answer ends before the first of these
    temperature: float = 0.0  # of trace and answer; 0 is greedy
    top_p: float = 1.0
    null: bool = False  # after the null trace instead of the model's own
    seed: int = 0

    @cached_property
    def key(self) -> str:
        """Changes with anything that decides a reply of one model."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, ensure_ascii=False).encode(errors="backslashreplace")).hexdigest()

    @property
    def sampled(self) -> bool:
        """Whether another seed could give another reply."""
        return self.temperature > 0 or (bool(self.choices) and not self.null)

    def seed_of(self, k: int, part: str) -> int:
        """Of the k-th "trace" or "answer": the same whatever else is asked beside it."""
        return int.from_bytes(hashlib.sha256(f"{self.key}/{k}/{part}".encode()).digest()[:7])


KEPT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How a line of kept replies is read."""

Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class Said:
    """One trace and what came after it. `answer` is empty where the trace did not end, for then there is none."""

    __pydantic_config__: ClassVar = KEPT

    trace: str | None  # None where the model does not think, or was not let think
    trace_tokens: Count
    finished: bool  # the model ended its trace itself
    answer: str
    answer_tokens: Count
    cut: bool = False  # the answer reached its cap
    logps: tuple[float, ...] = ()  # of the choices, nats, each summed over its tokens


@dataclass(frozen=True)
class Reply:
    """All that a model said to one question."""

    __pydantic_config__: ClassVar = KEPT

    key: str
    said: tuple[Said, ...]
    seconds: Annotated[float, Field(ge=0, le=2**53)]  # this question's share of its batch's time

    def answers(self, question: Question) -> bool:
        """Whether there is all that the question wants."""
        wanted = 1 if question.choices else question.n
        return len(self.said) == wanted and all(len(one.logps) == len(question.choices) for one in self.said)


_LINE = TypeAdapter(Reply)


class Replies:
    """JSON lines in a folder, one file a task and writer; what a kill cut short, or what is no reply, is left out and asked again."""

    def __init__(self, folder: Path, writer: int = 0) -> None:
        self.folder, self.writer = folder, writer
        self._known: dict[str, list[Reply]] = {}  # by question; of several that answer it the last counts
        folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Takes in what other processes wrote."""
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().splitlines():
                with suppress(ValidationError):
                    reply = _LINE.validate_json(line)
                    self._known.setdefault(reply.key, []).append(reply)

    def add(self, task: str, replies: Iterable[Reply]) -> None:
        """Appends in one write."""
        replies = list(replies)
        lines = "".join(json.dumps(asdict(reply), ensure_ascii=False) + "\n" for reply in replies)
        file = self.folder / f"{task}.{self.writer}.jsonl"
        with open_to_append(file) as out:
            if out.tell() and not _ends_line(file):
                out.write(b"\n")
            out.write(lines.encode(errors="backslashreplace"))
        for reply in replies:
            self._known.setdefault(reply.key, []).append(reply)

    def missing(self, questions: Iterable[Question]) -> list[Question]:
        """Each once, in their order."""
        return list({question.key: question for question in questions if self._find(question) is None}.values())

    def __getitem__(self, question: Question) -> Reply:
        """Raises InputError for a question that was not answered."""
        reply = self._find(question)
        if reply is None:
            raise InputError(f"a row of {question.task} has no reply in {self.folder}; run the evaluation again, it does what is missing")
        return reply

    def _find(self, question: Question) -> Reply | None:
        return next((reply for reply in reversed(self._known.get(question.key, ())) if reply.answers(question)), None)


def _ends_line(file: Path) -> bool:
    with file.open("rb") as lines:
        lines.seek(-1, 2)
        return lines.read(1) == b"\n"


def as_messages(turns: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """lm-eval's turns as ours."""
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)
