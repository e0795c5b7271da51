"""Reasoners for evaluation tests: tiny models with byte tokens, and scripted models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nrt.config import MarkersConfig
from nrt.data import Chat, Markers
from nrt.eval.reasoner import Reasoner
from nrt.models import add_marker_tokens
from nrt.rollout import Generator
from nrt.types import Row
from tests.scripted import ScriptedSampler
from tests.tiny import tiny_model, tiny_tokenizer

CONTEXT = 1 << 20
SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
}
"""Heads of size 32, the smallest that vLLM supports on a CPU."""


def save_tiny_model(
    folder: Path,
    *,
    thinks: bool,
    context: int = CONTEXT,
    seed: int = 0,
    chat_template: str | None = None,
) -> str:
    """Save a Llama with random weights over bytes; it thinks if its vocabulary has the markers."""
    tokenizer = tiny_tokenizer("bytes")
    if chat_template:
        tokenizer.chat_template = chat_template
    if thinks:
        add_marker_tokens(tokenizer, MarkersConfig())
    model = tiny_model(
        seed=seed, vocab_size=len(tokenizer), max_position_embeddings=context, **SHAPE
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scripted(
    respond: Callable[[str, bool], str],
    *,
    thinks: bool = True,
    likelihood: Callable[[str, str], float] = lambda prompt, choice: -1.0,
) -> Reasoner:
    """Return a model that generates `respond(preceding text, is a trace)`.

    A trace without `<|think_end|>` never ends.
    """
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer("bytes")
    add_marker_tokens(tokenizer, MarkersConfig())
    chat = Chat(tokenizer, MarkersConfig())
    end = "<|think_end|>"

    def samples(prompt: tuple[int, ...], n: int) -> list[list[int]]:
        tracing = prompt[-1] == chat.start_id
        text = respond(chat.decode(prompt), tracing)
        if tracing:
            trace, closed, _ = text.partition(end)
            ids = [*chat.encode_text(trace), *([chat.end_id] if closed else [])]
            return [ids if closed else (ids * CONTEXT)[:4096] for _ in range(n)]
        return [[*chat.encode_text(text), chat.end_of_turn_id] for _ in range(n)]

    def score(rows: Sequence[Row]) -> list[Tensor]:
        logps = [likelihood(chat.decode(row.prompt_ids), chat.decode(row.tail_ids)) for row in rows]
        return [torch.tensor([logp]) for logp in logps]

    markers = Markers(chat.start_id, chat.end_id)
    generator = Generator(ScriptedSampler(samples), markers, chat.stop_ids, 2048, 2048)
    return Reasoner("scripted", chat, generator, score, thinks, CONTEXT)


def teach(folder: str, answer: str, *, steps: int = 150) -> None:
    """Train a saved model to give one answer to all questions, so its greedy answers are no noise."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tail = tokenizer("assistant:" + answer, add_special_tokens=False)["input_ids"] + [
        tokenizer.eos_token_id
    ]
    for _ in range(steps):
        length = int(torch.randint(16, 400, (), generator=generator))
        prompts = torch.randint(4, 260, (8, length), generator=generator)
        ids = torch.cat([prompts, torch.tensor(tail).repeat(8, 1)], 1)
        labels = ids.clone()
        labels[:, : length + 3] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
