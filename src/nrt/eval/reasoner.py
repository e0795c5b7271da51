"""A trained model, opened for questions: whether it thinks first, what it writes, and how likely it finds an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.config import MarkersConfig
from nrt.data import Chat, Markers, answers_at_once, bare_row, ensure_template, null_row, trace_row
from nrt.errors import InputError, unknown
from nrt.models import add_marker_tokens, described, end_token_ids, load_model, load_tokenizer, pick_device, position_limit
from nrt.objective import METHODS
from nrt.rollout import HFSampler, Sampler, Writer
from nrt.rollout.probe import sharing_fault
from nrt.run import load_run, run_folder
from nrt.scoring import choose_scorer, score_all
from nrt.scoring.probe import probe_rows
from nrt.types import Example, Message, Pair, Row, Trace

TOKENS_PER_BATCH = 16384
"""Of what is scored together."""


PROBE = (
    ("How many days have three weeks and two days?", "Three weeks have 21 days, so there are 23 days in all."),
    ("What is the capital of France?", "Paris is the capital of France."),
)
"""Questions and answers on which the scorer and the sampler are tried."""


@dataclass(frozen=True)
class Reasoner:
    """`thinks`: it writes a trace between the markers, then the answer; else it answers straight after the prompt."""

    name: str
    chat: Chat
    writer: Writer
    score: Callable[[Sequence[Row]], list[Tensor]]  # log-probability of each tail token, nats
    thinks: bool
    context: int  # most tokens of prompt, trace and answer together
    model: Any = None  # the transformers module, where it is one

    def pair(self, question: str, answer: str = "") -> Pair:
        """The question as the user's only turn. `answer_ids` ends with the token that ends the turn."""
        return _pair(self.chat, question, answer)

    def row(self, pair: Pair, trace: Trace | None) -> Row:
        """`x START z END y*`, or `x y*` without a trace."""
        return bare_row(pair) if trace is None else trace_row(pair, trace, self.writer.markers)

    def row_without(self, pair: Pair) -> Row:
        """The answer as this model gives it without having thought: after the null trace, or straight after the prompt."""
        return null_row(pair, self.writer.markers) if self.thinks else bare_row(pair)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and what its run or its tokenizer says of it; the weights are not opened."""

    name: str  # as it was given
    folder: str  # or hub name
    tokenizer: Any
    markers: MarkersConfig
    thinks: bool


def find_model(name: str) -> Source:
    """A run (by name or folder: its trained model, its own markers), or any Hugging Face causal language model.

    A model thinks if its vocabulary has END and nothing says otherwise: a run of a method without traces, or the template that was
    exported with such a model. Raises InputError for what cannot be opened.
    """
    folder, markers, thinks = _find(name)
    tokenizer = load_tokenizer(folder)
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
    return Source(name, folder, tokenizer, markers, thinks)


def open_reasoner(
    name: str | Source,
    *,
    max_trace_tokens: int = 2048,
    max_answer_tokens: int = 2048,
    device: str = "auto",
    max_rows: int = 512,
    backend: str = "hf",
) -> Reasoner:
    """The model, ready for questions: on a CPU in float32, else in bfloat16; at most `max_rows` sequences are sampled at a time.

    Raises InputError for what cannot be opened.
    """  # fmt: skip
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    source = find_model(name) if isinstance(name, str) else name
    return BACKENDS[backend](source, pick_device(device), max_rows, (max_trace_tokens, max_answer_tokens))


def _open_hf(source: Source, device: torch.device, max_rows: int, caps: tuple[int, int]) -> Reasoner:
    model, _ = load_model(source.folder, dtype=_dtype(device), device=device)
    chat = Chat(source.tokenizer, source.markers, extra_end_ids=end_token_ids(model, source.tokenizer))
    pad_id = source.tokenizer.pad_token_id if source.tokenizer.pad_token_id is not None else chat.end_of_turn_id
    probe = probe_rows([_pair(chat, *texts) for texts in PROBE], model.config, 0)
    choice = choose_scorer(model, pad_id, rows=probe)
    scorer = choice.scorer
    share = not sharing_fault(model, pad_id, probe, choice.tolerance)

    def score(rows: Sequence[Row]) -> list[Tensor]:
        return [logp for logp, _ in score_all(scorer, model, rows, TOKENS_PER_BATCH).rows()]

    writer = _writer(chat, HFSampler(model, pad_id, max_rows, share), caps)
    context = position_limit(model.config) or 1 << 30
    return Reasoner(source.name, chat, writer, score, source.thinks, context, model)


def _open_vllm(source: Source, device: torch.device, max_rows: int, caps: tuple[int, int]) -> Reasoner:
    from nrt.rollout.vllm import VLLMSampler

    sampler = VLLMSampler(source.folder, dtype=str(_dtype(device)).removeprefix("torch."), rows=max_rows)
    chat = Chat(source.tokenizer, source.markers, extra_end_ids=end_token_ids(described(source.folder), source.tokenizer))

    def score(rows: Sequence[Row]) -> list[Tensor]:
        return [torch.tensor(logps) for logps in sampler.score(rows)]

    return Reasoner(source.name, chat, _writer(chat, sampler, caps), score, source.thinks, sampler.context)


def _pair(chat: Chat, question: str, answer: str) -> Pair:
    messages = (Message("user", question),)
    return Pair(Example("", messages, answer), chat.encode_prompt(messages), chat.encode_answer(answer))


BACKENDS = {"hf": _open_hf, "vllm": _open_vllm}


def _writer(chat: Chat, sampler: Sampler, caps: tuple[int, int]) -> Writer:
    return Writer(sampler, Markers(chat.start_id, chat.end_id), chat.stop_ids, *caps)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


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
