"""`nrt chat`: ask a trained model; its trace is shown dimmed as it comes, then the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers.generation.streamers import BaseStreamer

from nrt.data import Chat
from nrt.eval.reasoner import open_reasoner
from nrt.types import Message


@dataclass(frozen=True)
class Settings:
    """Caps in tokens; temperature 0 is greedy."""

    max_trace_tokens: int = 2048
    max_answer_tokens: int = 2048
    temperature: float = 0.0
    trace: bool = True  # False: answer after the null trace


class Talk:
    """A conversation with one model. Earlier turns stay in the prompt, their traces do not."""

    def __init__(self, model: str, settings: Settings, console: Console) -> None:
        self.reasoner = open_reasoner(model)
        self.settings, self.console, self.messages = settings, console, []
        self.model, self.chat = self.reasoner.model, self.reasoner.chat

    def ask(self, question: str) -> str:
        """Streams trace and answer to the console; returns the answer."""
        self.messages.append(Message("user", question))
        ids = list(self.chat.encode_prompt(tuple(self.messages)))
        if self.reasoner.thinks:
            if self.chat.start_id is not None:
                ids.append(self.chat.start_id)
            if self.settings.trace:
                trace = self._generate(ids, self.chat.stop_ids, self.settings.max_trace_tokens, style="dim")
                ids += [token for token in trace if token not in self.chat.stop_ids]
                self.console.print("\n")
            ids.append(self.chat.end_id)
        stop_ids = self.chat.stop_ids - {self.chat.end_id}
        answer_ids = self._generate(ids, stop_ids, self.settings.max_answer_tokens, style="default")
        self.console.print("\n")
        answer = self.chat.decode(tuple(token for token in answer_ids if token not in stop_ids | self.chat.control_ids))
        self.messages.append(Message("assistant", answer))
        return answer

    def _generate(self, ids: list[int], stop_ids: frozenset[int], cap: int, style: str) -> list[int]:
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.settings.temperature, "top_p": 1.0, "top_k": 0}
        prompt = torch.tensor([ids], device=self.model.device)
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=cap,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
            streamer=_Printer(self.chat, self.console, stop_ids | self.chat.control_ids, style),
            **sampling,
        )
        return out[0, len(ids) :].tolist()


class _Printer(BaseStreamer):
    """Prints text as soon as its tokens are complete characters; control tokens are left out, as a server leaves them out."""

    def __init__(self, chat: Chat, console: Console, hidden: frozenset[int], style: str) -> None:
        self.chat, self.console, self.hidden, self.style = chat, console, hidden, style
        self.ids: list[int] = []
        self.shown, self.prompt_seen = 0, False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # generate hands the prompt over first
            self.prompt_seen = True
            return
        self.ids += [token for token in value.flatten().tolist() if token not in self.hidden]
        text = self.chat.decode(tuple(self.ids))
        if not text.endswith("\ufffd"):  # half a character: wait for its other bytes
            self.console.print(text[self.shown :], style=self.style, end="", markup=False, highlight=False, soft_wrap=True)
            self.shown = len(text)

    def end(self) -> None: ...
