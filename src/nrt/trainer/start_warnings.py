"""Warnings that a new run begins with: about its learning rate, its data, its scorer and K = 1."""

from __future__ import annotations

from collections.abc import Callable

from nrt.config import Config
from nrt.data import LoadedPairs
from nrt.run import RunWriter
from nrt.trainer.listener import Listener, warn
from nrt.trainer.setup import Parts

HIGH_LEARNING_RATE = 0.01
"""AdamW changes a weight by up to the learning rate in an update, and most weights of a language
model are below 0.1."""


def warn_at_start(config: Config, parts: Parts, writer: RunWriter, listener: Listener) -> None:
    """Write and display the warnings of a new run."""

    def warn_now(kind: str, message: str, **details: int) -> None:
        warn(writer, listener, kind, message, 0, **details)

    if parts.padded_by_surprise:
        text = "prompts are forwarded once for each trace, which takes several times as long"
        message = f"{parts.notes[0]}: {text}"
        warn_now("padded-rows", message)
    if parts.compile_fault:
        message = f"{parts.compile_fault}; layers run uncompiled, which is slower on a GPU"
        warn_now("not-compiled", message)
    _warn_about_data(config, parts.data, warn_now)
    if parts.valid and parts.valid.content_hash == parts.data.content_hash:
        message = "data.valid is data.train: held-out numbers are of the training data"
        warn_now("held-out-is-trained", message)
    if config.heldout.checker and not config.data.valid:
        message = f"heldout.checker={config.heldout.checker} measures nothing without data.valid"
        warn_now("nothing-held-out", message)
    if config.optimizer.lr > HIGH_LEARNING_RATE:
        message = f"optimizer.lr={config.optimizer.lr:g} overwrites a pretrained model within a "
        message += "few updates; usual are 1e-6 to 1e-4, and with LoRA up to 1e-3"
        warn_now("learning-rate", message)
    method = parts.learner.method
    rows = len(parts.data.pairs)
    if config.batch > rows:
        message = f"batch={config.batch} prompts repeat within a step: the data have {rows} rows; "
        message += f"set batch={rows} or fewer"
        warn_now("repeated-prompts", message, count=rows)
    if method.samples and config.traces == 1 and method.centre == "mean":
        message = "traces=1: a group of one has no advantage, so only answers and markers are "
        message += "trained; set traces=2 or more"
        warn_now("single-trace", message)


def _warn_about_data(config: Config, data: LoadedPairs, warn_now: Callable[..., None]) -> None:
    for kind, count, text in (
        (
            "dropped-prompts",
            data.dropped_prompts,
            f"of {data.total} rows left out: their prompts are longer than "
            f"max_prompt_tokens={config.max_prompt_tokens}",
        ),
        (
            "dropped-answers",
            data.dropped_answers,
            f"of {data.total} rows left out: their answers are longer than "
            f"max_answer_tokens={config.max_answer_tokens}",
        ),
        (
            "bad-rows",
            len(data.bad),
            "rows that cannot be used were skipped; skipped/train.jsonl lists them",
        ),
        (
            "truncated-answers",
            data.truncated_answers,
            f"of {data.total} answers cut to max_answer_tokens={config.max_answer_tokens}",
        ),
    ):
        if count:
            message = f"{count} {text}"
            warn_now(kind, message, count=count)
    if data.unknown_tokens:
        message = f"the model's vocabulary lacks {data.unknown_tokens} tokens of the data"
        warn_now("unknown-tokens", message, count=data.unknown_tokens)
