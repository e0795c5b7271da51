"""Open a trained model for questions: find out whether it thinks, generate text, score answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.config import Config, MarkersConfig
from nrt.data import (
    Chat,
    Markers,
    bare_row,
    ensure_template,
    exported_without_trace,
    null_row,
    trace_row,
)
from nrt.errors import InputError, did_you_mean, unknown_name
from nrt.models import (
    add_marker_tokens,
    end_token_ids,
    load_configs,
    load_model,
    load_tokenizer,
    pick_device,
    position_limit,
)
from nrt.objective import METHODS
from nrt.rollout import Generator, HFSampler, Sampler
from nrt.rollout.probe import sharing_fault
from nrt.run import load_run, run_folder
from nrt.scoring import choose_scorer, score_all
from nrt.scoring.probe import probe_rows
from nrt.serving.layout import LAYOUT, read_layout
from nrt.types import Example, Message, Pair, Row, Trace

TOKENS_PER_BATCH = 16384
"""Tokens scored in one forward pass."""

PROBE = (
    (
        "How many days have three weeks and two days?",
        "Three weeks have 21 days, so there are 23 days in all.",
    ),
    ("What is the capital of France?", "Paris is the capital of France."),
)
"""Questions and answers that test the scorer and the sampler when a model is opened."""


def share_room(room: int, trace: int, answer: int) -> tuple[int, int]:
    """Return the caps of trace and answer, in proportion if they do not fit into `room` tokens.

    >>> share_room(100, 30, 40), share_room(35, 30, 40), share_room(5, 0, 40)
    ((30, 40), (15, 20), (0, 5))
    """
    if trace + answer <= room:
        return trace, answer
    if trace:
        trace = max(1, room * trace // (trace + answer))
    return trace, room - trace


@dataclass(frozen=True)
class Reasoner:
    """A model with its chat, generator and scorer.

    If `thinks`, it generates a trace between the markers before the answer. Otherwise it answers
    directly after the prompt.
    """

    name: str
    chat: Chat
    generator: Generator
    score: Callable[[Sequence[Row]], list[Tensor]]  # log-probability of each tail token, in nats
    thinks: bool
    context: int  # maximum tokens of prompt, trace and answer together
    model: Any = None  # the transformers module; None with the vLLM backend
    system: str | None = None  # system message before a question, as in the run's training

    def pair(self, question: str, answer: str = "") -> Pair:
        """Return the question as the user's only turn, after the system message if there is one.

        `answer_ids` ends with the token that ends the turn.
        """
        return _pair(self.chat, question, answer, self.system)

    def row(self, pair: Pair, trace: Trace | None) -> Row:
        """Return the row `x START z END y*`, or `x y*` without a trace."""
        return bare_row(pair) if trace is None else trace_row(pair, trace, self.generator.markers)

    def respond(
        self, pair: Pair, n: int = 1, *, seed: int = 0, greedy: bool = True
    ) -> list[tuple[Trace | None, tuple[int, ...]]]:
        """Generate `n` traces, and a greedy answer after each; return their traces and answer ids.

        Without thinking there is one answer, and its trace is None. The last id of an answer ends
        the turn, unless the cap was reached.

        Raises InputError as `generator_for` does.
        """
        generator = self.generator_for(pair)
        traces: Sequence[Trace | None] = [None]
        if self.thinks:
            (traces,) = generator.traces([pair], n, seed=seed, greedy=greedy)
        rows = [self.row(pair, trace) for trace in traces]
        answers = generator.answers(rows, seed=seed, greedy=True)
        return list(zip(traces, answers, strict=True))

    def generator_for(self, pair: Pair, *, trace: bool = True) -> Generator:
        """Return the generator with caps that fit into the context after the pair's prompt.

        The reference answer, if the pair has one, fits behind a trace too.

        Raises InputError if the prompt leaves no room for a trace and the answer.

        Args:
            trace: whether a trace will be sampled, if the model thinks.
        """
        generator, reference = self.generator, len(pair.answer_ids)
        samples_trace = trace and self.thinks
        room = self.context - len(pair.prompt_ids) - 2  # START and END
        if room < samples_trace + max(1, reference):
            raise InputError(
                f"a prompt of {len(pair.prompt_ids)} tokens leaves no room for an answer in the "
                f"context of {self.name} ({self.context} tokens); shorten it, or begin a new "
                "conversation"
            )
        longest_trace = generator.max_trace_tokens if samples_trace else 0
        longest_answer = max(generator.max_answer_tokens, reference)
        longest_trace, longest_answer = share_room(room, longest_trace, longest_answer)
        if longest_answer < reference:
            longest_trace, longest_answer = room - reference, reference
        return replace(
            generator,
            max_trace_tokens=max(longest_trace, 1),
            max_answer_tokens=min(longest_answer, generator.max_answer_tokens),
        )

    def row_without_trace(self, pair: Pair) -> Row:
        """Return the row of an answer without thinking.

        The answer follows the null trace if the model thinks, else the prompt.
        """
        return null_row(pair, self.generator.markers) if self.thinks else bare_row(pair)


@dataclass(frozen=True)
class ModelSource:
    """Location of a model and the settings from its run or tokenizer, without its weights."""

    name: str  # as the user wrote it
    folder: str  # folder or hub name
    tokenizer: Any
    markers: MarkersConfig
    thinks: bool
    config: Config | None = None  # of the run that trained it

    @property
    def system(self) -> str | None:
        """The system message that its run trained with, if any."""
        return self.config.data.system if self.config else None


def find_model(name: str) -> ModelSource:
    """Find a model by the name or folder of its run, or by a Hugging Face name or folder.

    A run provides its trained model and its markers; an exported folder has them in nrt.json. Any
    other model thinks if its vocabulary has END, unless its run has a method without traces or its
    chat template was exported with such a model. Raises InputError if the model cannot be opened.
    """
    folder, config, thinks = _find(name)
    markers = config.markers if config else None
    path = Path(folder).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(f"{name} is a file; give a run, or a model's folder or name")
    if not path.is_dir() and not path.is_file():
        try:
            load_configs(folder)
        except InputError as error:
            runs = [file.parent.name for file in Path("runs").glob("*/config.yaml")]
            hint = "" if "did you mean" in str(error) else did_you_mean(name, runs)
            raise InputError(f"there is no run {run_folder(name)}, and {error}{hint}") from error
    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    exported = read_layout(folder) if markers is None and path.suffix != ".gguf" else None
    if exported:
        markers, thinks = exported
    if markers is None:
        markers = MarkersConfig()
        if markers.end in vocabulary and markers.start not in vocabulary:  # trained without START
            markers = MarkersConfig(start=None)
    ensure_template(tokenizer)
    if thinks is None:
        thinks = markers.end in vocabulary and not exported_without_trace(
            tokenizer.get_chat_template(), markers
        )
    if markers.end not in vocabulary:
        # No text can then produce the markers; the model never receives their ids.
        add_marker_tokens(tokenizer, markers)
    return ModelSource(name, folder, tokenizer, markers, thinks, config)


def open_reasoner(
    name: str | ModelSource,
    *,
    max_trace_tokens: int = 2048,
    max_answer_tokens: int = 2048,
    device: str = "auto",
    max_rows: int = 512,
    backend: str = "hf",
) -> Reasoner:
    """Load a model: in float32 on a CPU, else in bfloat16.

    At most `max_rows` sequences are sampled at a time. Raises InputError if the model cannot be
    opened.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    source = find_model(name) if isinstance(name, str) else name
    caps = (max_trace_tokens, max_answer_tokens)
    return BACKENDS[backend](source, pick_device(device), max_rows, caps)


def _open_hf(
    source: ModelSource, device: torch.device, max_rows: int, caps: tuple[int, int]
) -> Reasoner:
    model, _ = load_model(source.folder, dtype=_dtype(device), device=device)
    end_ids = end_token_ids(model, source.tokenizer)
    chat = Chat(source.tokenizer, source.markers, extra_end_ids=end_ids)
    pad_id = source.tokenizer.pad_token_id
    if pad_id is None:
        pad_id = chat.end_of_turn_id
    probe = probe_rows([_pair(chat, *texts) for texts in PROBE], model.config, 0)
    choice = choose_scorer(model, pad_id, rows=probe)
    scorer = choice.scorer
    share = not sharing_fault(model, pad_id, probe, choice.tolerance)

    def score(rows: Sequence[Row]) -> list[Tensor]:
        scores = score_all(scorer, model, rows, TOKENS_PER_BATCH)
        return [logp for logp, _ in scores.rows()]

    generator = _generator(chat, HFSampler(model, pad_id, max_rows, share), caps)
    context = position_limit(model.config) or 1 << 30
    return Reasoner(
        source.name, chat, generator, score, source.thinks, context, model, source.system
    )


def _open_vllm(
    source: ModelSource, device: torch.device, max_rows: int, caps: tuple[int, int]
) -> Reasoner:
    from nrt.rollout.vllm import VLLMSampler

    dtype = str(_dtype(device)).removeprefix("torch.")
    sampler = VLLMSampler(source.folder, dtype=dtype, rows=max_rows)
    end_ids = end_token_ids(load_configs(source.folder), source.tokenizer)
    chat = Chat(source.tokenizer, source.markers, extra_end_ids=end_ids)

    def score(rows: Sequence[Row]) -> list[Tensor]:
        return [torch.tensor(logps) for logps in sampler.score(rows)]

    generator = _generator(chat, sampler, caps)
    return Reasoner(
        source.name, chat, generator, score, source.thinks, sampler.context, system=source.system
    )


def _pair(chat: Chat, question: str, answer: str, system: str | None = None) -> Pair:
    messages = (Message("user", question),)
    if system:
        messages = (Message("system", system), *messages)
    example = Example("", messages, answer)
    return Pair(example, chat.encode_prompt(messages), chat.encode_answer(answer))


BACKENDS = {"hf": _open_hf, "vllm": _open_vllm}


def _generator(chat: Chat, sampler: Sampler, caps: tuple[int, int]) -> Generator:
    return Generator(sampler, Markers(chat.start_id, chat.end_id), chat.stop_ids, *caps)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _find(name: str) -> tuple[str, Config | None, bool | None]:
    """Return (model folder or hub name, config of its run, whether it thinks).

    None: only the model itself determines it.
    """
    given = Path(name).expanduser()
    candidates = [run_folder(name), given]
    if given.name == "model" and not (given / LAYOUT).is_file():
        candidates.append(given.parent)  # RUN/model
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            run = load_run(folder)
            if not run.model_dir.is_dir():
                raise InputError(
                    f"{folder} has no trained model yet. Resume the run with "
                    f"`nrt resume {name}`, or export a checkpoint with `nrt export`."
                )
            method = METHODS.get(run.config.method)  # None: a method of a plug-in
            thinks = False if method and not method.samples else None
            return str(run.model_dir), run.config, thinks
    path = Path(name).expanduser()
    return str(path) if path.exists() else name, None, None
