"""A trained model, opened for questions: whether it thinks first, what it writes, and how likely it finds an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.config import MarkersConfig
from nrt.data import Chat, Markers, answers_at_once, bare_row, ensure_template, null_row, trace_row
from nrt.errors import InputError
from nrt.models import add_marker_tokens, end_token_ids, load_model, pick_device
from nrt.objective import METHODS
from nrt.rollout import HFSampler, Writer
from nrt.run import load_run, run_folder
from nrt.scoring import Scorer, choose_scorer, score_all
from nrt.types import Example, Message, Pair, Row, Trace


@dataclass(frozen=True)
class Reasoner:
    """`thinks`: it writes a trace between the markers, then the answer; else it answers straight after the prompt."""

    name: str
    model: Any
    chat: Chat
    writer: Writer
    scorer: Scorer
    thinks: bool
    tokens_per_batch: int = 16384

    def pair(self, question: str, answer: str = "") -> Pair:
        """The question as the user's only turn. `answer_ids` ends with the token that ends the turn."""
        messages = (Message("user", question),)
        return Pair(Example("", messages, answer), self.chat.encode_prompt(messages), self.chat.encode_answer(answer))

    def row(self, pair: Pair, trace: Trace | None) -> Row:
        """`x START z END y*`, or `x y*` without a trace."""
        return bare_row(pair) if trace is None else trace_row(pair, trace, self.writer.markers)

    def row_without(self, pair: Pair) -> Row:
        """The answer as this model gives it without having thought: after the null trace, or straight after the prompt."""
        return null_row(pair, self.writer.markers) if self.thinks else bare_row(pair)

    def score(self, rows: Sequence[Row]) -> list[Tensor]:
        """Log-probability of each tail token, nats."""
        return [logp for logp, _ in score_all(self.scorer, self.model, rows, self.tokens_per_batch).rows()]


def open_reasoner(name: str, *, max_trace_tokens: int = 2048, max_answer_tokens: int = 2048, device: str = "auto") -> Reasoner:
    """A run (by name or folder: its trained model, its own markers), or any Hugging Face causal language model.

    A model thinks if its vocabulary has END and nothing says otherwise: a run of a method without traces, or the template that was
    exported with such a model. On a CPU it computes in float32, else in bfloat16. Raises InputError for what cannot be opened.
    """
    folder, markers, thinks = _find(name)
    where = pick_device(device)
    model, tokenizer = load_model(folder, dtype=torch.float32 if where.type == "cpu" else torch.bfloat16, device=where)
    vocabulary = tokenizer.get_vocab()
    if markers is None:
        markers = MarkersConfig()
        if markers.end in vocabulary and markers.start not in vocabulary:  # the layout without START
            markers = MarkersConfig(start=None)
    ensure_template(tokenizer)
    if thinks is None:
        thinks = markers.end in vocabulary and not answers_at_once(tokenizer.get_chat_template(), markers)
    if markers.end not in vocabulary:
        add_marker_tokens(tokenizer, markers)  # so that no text can spell them; the model never sees their ids
    chat = Chat(tokenizer, markers, extra_end_ids=end_token_ids(model, tokenizer))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else chat.end_of_turn_id
    return Reasoner(
        name=name,
        model=model,
        chat=chat,
        scorer=choose_scorer(model, pad_id).scorer,
        writer=Writer(HFSampler(model, pad_id), Markers(chat.start_id, chat.end_id), chat.stop_ids, max_trace_tokens, max_answer_tokens),
        thinks=thinks,
    )


def _find(name: str) -> tuple[str, MarkersConfig | None, bool | None]:
    """(model folder or hub name, markers, whether it thinks); None where only the model itself can tell."""
    for folder in (run_folder(name), Path(name).expanduser()):
        if (folder / "config.yaml").is_file():
            run = load_run(folder)
            if not run.model_dir.is_dir():
                raise InputError(
                    f"{folder} has no trained model yet; go on with `nrt train resume={name}`, or take one out with `nrt export`"
                )
            method = METHODS.get(run.config.method)  # a plug-in's is not known here
            return str(run.model_dir), run.config.markers, False if method and not method.samples else None
    return name, None, None
