"""`nrt chat`: question a model; print its trace dimmed while it is generated, then its answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from nrt.eval.reasoner import find_model, open_reasoner
from nrt.rollout import HFSampler, Request
from nrt.types import Example, Message, Pair, Sample

DEFAULT_CAP = 2048
"""Tokens of the longest trace or answer of a model without a run."""


@dataclass(frozen=True)
class ChatSettings:
    """Caps in tokens, and sampling settings."""

    max_trace_tokens: int | None = None  # None: those of the model's run, or else DEFAULT_CAP
    max_answer_tokens: int | None = None
    temperature: float = 0.0  # 0: greedy
    trace: bool = True  # False: answer after the null trace
    system: str | None = None  # system message; None: the run's own, if any


class ChatSession:
    """Conversation with one model. The prompt keeps earlier turns, without their traces."""

    def __init__(self, model: str, settings: ChatSettings, console: Console) -> None:
        source = find_model(model)
        run = source.config
        self.reasoner = open_reasoner(
            source,
            max_trace_tokens=settings.max_trace_tokens
            or (run.max_trace_tokens if run else DEFAULT_CAP),
            max_answer_tokens=settings.max_answer_tokens
            or (run.max_answer_tokens if run else DEFAULT_CAP),
        )
        self.settings = settings
        self.console = console
        self.messages: list[Message] = []
        system = run.data.system if run and settings.system is None else settings.system
        if system:
            self.messages.append(Message("system", system))
        self.chat = self.reasoner.chat

    def ask(self, question: str) -> str:
        """Stream trace and answer to the console; return the answer."""
        messages = (*self.messages, Message("user", question))
        pair = Pair(Example("", messages, ""), self.chat.encode_prompt(messages), ())
        generator = self.reasoner.generator_for(pair, trace=self.settings.trace)
        greedy = self.settings.temperature == 0
        if self.reasoner.thinks and self.settings.trace:
            request = generator.trace_request([pair], 1, seed=_new_seed(), greedy=greedy)
            trace = generator.to_trace(Sample(self._stream(request, style="dim", label="trace")))
            row = self.reasoner.row(pair, trace)
        else:
            row = self.reasoner.row_without_trace(pair)
        request = generator.answer_request([row.before_answer], seed=_new_seed(), greedy=greedy)
        answer = self._text(self._stream(request, style="default", label="answer"))
        self.messages = [*messages, Message("assistant", answer)]
        return answer

    def _stream(self, request: Request, style: str, label: str) -> tuple[int, ...]:
        """Print a sample while it is generated, as soon as tokens are complete characters.

        The label comes first where no style can be seen: in a pipe or a file.
        """
        if not self.console.is_terminal:
            self._print(f"{label}: ", style)
        sampler = self.reasoner.generator.sampler
        assert isinstance(sampler, HFSampler)  # `open_reasoner` without a backend
        if not request.greedy:
            request = replace(request, temperature=self.settings.temperature)
        ids: list[int] = []
        printed = 0  # characters
        for token in sampler.stream(request):
            ids.append(token)
            text = self._text(ids)
            # Else an incomplete character: wait for its other bytes
            if not text.endswith("\ufffd"):
                self._print(text[printed:], style)
                printed = len(text)
        self.console.print("\n")
        return tuple(ids)

    def _text(self, ids: Sequence[int]) -> str:
        """Return the text of ids without end and control tokens, which a server omits too."""
        hidden = self.chat.stop_ids | self.chat.control_ids
        return self.chat.decode(tuple(token for token in ids if token not in hidden))

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="", highlight=False, soft_wrap=True)


def _new_seed() -> int:
    return secrets.randbits(63)
