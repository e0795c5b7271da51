"""Tiny models that vLLM can run on a CPU, and what the scorer says of their samples."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import PreTrainedModel

from nrt.config import Config, build_config
from nrt.scoring import PaddedScorer
from nrt.types import Role, Row
from tests.tiny import tiny_model
from tests.trainer.conftest import make_tokenizer

HEADS: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.1,
}
"""vLLM has no smaller heads than 32 on a CPU."""

MEMORY = 0.02
"""Of the machine's, for keys and values."""


def scores(model, prompt, ids):
    """Log-probabilities of `ids` after the prompt, one by one."""
    row = Row(prompt, tuple(ids), (Role.TRACE,) * len(ids), end_sampled=False)
    with torch.no_grad():
        return PaddedScorer(0)(model, [row]).logp_N.tolist()


def move(model: PreTrainedModel, by: float = 0.03) -> None:
    """Changes every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.ones_like(parameter).cumsum(-1).sin())


def save_trainable(folder) -> str:
    """A Llama of words, tied, without the markers."""
    tokenizer = make_tokenizer()
    model = tiny_model(
        "llama-tied-mha", vocab_size=len(tokenizer), **{**HEADS, "num_key_value_heads": 2}
    )  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_config(model: str, folder, **settings) -> Config:
    """Six steps on sixteen pairs, with vLLM in this process."""
    numbers = ["one", "two", "three", "four"]
    file = folder / "pairs.jsonl"
    rows = [
        {"question": f"what is {a} plus {b} ?", "answer": f"the sum is {b}"}
        for a in numbers
        for b in numbers
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": model, "run": str(folder / "run"), "steps": 6, "batch": 4, "traces": 3, "max_trace_tokens": 6, "max_answer_tokens": 8,
        "max_prompt_tokens": 16, "eval_every": 3, "save_every": 3, "threads": 1, "data": {"train": str(file), "valid": str(file)},
        "heldout": {"rows": 6, "checker": "exact"}, "optimizer": {"lr": 1e-2}, "sampler": "vllm", "vllm": {"memory": MEMORY},
    }  # fmt: skip
    return build_config(values, settings)
