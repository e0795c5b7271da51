"""Records of an evaluation, questions and replies, and the store of replies.

A reply is found by the hash of everything that determines it (`EvalQuestion.key`). A suite that was
killed, or that gets more rows, another seed or another wording, therefore computes only the missing
replies.
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

from nrt.errors import InputError
from nrt.system.files import open_to_append
from nrt.types import Message


@dataclass(frozen=True)
class EvalQuestion:
    """One row of one task: its answers are generated, or its choices are scored if it has some."""

    task: str
    messages: tuple[Message, ...]
    opening: str = ""  # start of every answer, after the trace
    choices: tuple[str, ...] = ()
    n: int = 1  # answers, each after its own trace
    max_trace_tokens: int = 2048
    max_answer_tokens: int = 2048
    until: tuple[str, ...] = ()  # stop strings: an answer ends before the first of these
    temperature: float = 0.0  # of trace and answer; 0 is greedy
    top_p: float = 1.0
    null: bool = False  # answer after the null trace instead of the model's own
    seed: int = 0

    @cached_property
    def key(self) -> str:
        """Hash of every field, which all determine the replies of a model."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()

    @property
    def sampled(self) -> bool:
        """True if another seed could give another reply."""
        return self.temperature > 0 or (bool(self.choices) and not self.null)

    def seed_of(self, k: int, part: str) -> int:
        """Return the seed of the k-th "trace" or "answer", independent of all other questions."""
        return int.from_bytes(hashlib.sha256(f"{self.key}/{k}/{part}".encode()).digest()[:7])


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Validation of a line of stored replies."""

Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class Response:
    """One trace and the answer after it; `answer` is empty if the trace did not end."""

    __pydantic_config__: ClassVar = STRICT

    trace: str | None  # None if the model does not think, or answered after the null trace
    trace_tokens: Count
    finished: bool  # the model ended its trace itself
    answer: str
    answer_tokens: Count
    cut: bool = False  # the answer reached its cap
    logps: tuple[float, ...] = ()  # per choice: log-probability in nats, summed over its tokens


@dataclass(frozen=True)
class ModelReply:
    """All responses of a model to one question."""

    __pydantic_config__: ClassVar = STRICT

    key: str
    said: tuple[Response, ...]
    seconds: Annotated[float, Field(ge=0, le=2**53)]  # this question's share of its batch's time

    def is_complete(self, question: EvalQuestion) -> bool:
        """True if the reply has all answers or all choices of the question."""
        needed = 1 if question.choices else question.n
        if len(self.said) != needed:
            return False
        return all(len(response.logps) == len(question.choices) for response in self.said)


_REPLY = TypeAdapter(ModelReply)


class ReplyStore:
    """Folder of JSON lines, one file per task and worker process.

    Lines that a kill cut short and lines that are no reply are skipped; their questions then count
    as missing.
    """

    def __init__(self, folder: Path, worker: int = 0) -> None:
        self.folder, self.worker = folder, worker
        self._replies: dict[str, list[ModelReply]] = {}  # by key; the last complete reply counts
        folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Read the files of all workers."""
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().splitlines():
                with suppress(ValidationError):
                    reply = _REPLY.validate_json(line)
                    self._replies.setdefault(reply.key, []).append(reply)

    def add(self, task: str, replies: Iterable[ModelReply]) -> None:
        """Append replies to the task's file in a single write."""
        replies = list(replies)
        lines = "".join(json.dumps(asdict(reply), ensure_ascii=False) + "\n" for reply in replies)
        file = self.folder / f"{task}.{self.worker}.jsonl"
        with open_to_append(file) as out:
            if out.tell() and not _ends_line(file):
                out.write(b"\n")
            out.write(lines.encode(errors="backslashreplace"))
        for reply in replies:
            self._replies.setdefault(reply.key, []).append(reply)

    def missing(self, questions: Iterable[EvalQuestion]) -> list[EvalQuestion]:
        """Return the questions without a complete reply, each once, in their order."""
        missing: dict[str, EvalQuestion] = {}
        for question in questions:
            if self._find(question) is None:
                missing[question.key] = question
        return list(missing.values())

    def __getitem__(self, question: EvalQuestion) -> ModelReply:
        """Return the reply to a question. Raises InputError if there is none."""
        reply = self._find(question)
        if reply is None:
            raise InputError(
                f"{self.folder}: no reply to a question of {question.task}. "
                "Run the evaluation again; it answers only the missing questions."
            )
        return reply

    def _find(self, question: EvalQuestion) -> ModelReply | None:
        for reply in reversed(self._replies.get(question.key, ())):
            if reply.is_complete(question):
                return reply
        return None


def _ends_line(file: Path) -> bool:
    with file.open("rb") as lines:
        lines.seek(-1, 2)
        return lines.read(1) == b"\n"


def as_messages(turns: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """Convert the turns of an lm-eval chat into messages."""
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)
