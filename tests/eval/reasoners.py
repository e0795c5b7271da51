"""Reasoners for the tests of evaluations: tiny models with byte tokens, and scripts that only look like models."""

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
from nrt.rollout import ScriptedSampler, Writer
from nrt.types import Row
from tests.tiny import tiny_model, tiny_tokenizer

CONTEXT = 1 << 20
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}
"""Heads of 32: vLLM has no smaller ones on a CPU."""


def save_tiny_model(folder: Path, *, thinks: bool, context: int = CONTEXT, seed: int = 0, chat_template: str | None = None) -> str:
    """A Llama with random weights over bytes; with the markers in its vocabulary, it thinks."""
    tokenizer = tiny_tokenizer("bytes")
    if chat_template:
        tokenizer.chat_template = chat_template
    if thinks:
        add_marker_tokens(tokenizer, MarkersConfig())
    model = tiny_model(seed=seed, vocab_size=len(tokenizer), max_position_embeddings=context, **SHAPE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scripted(
    say: Callable[[str, bool], str], *, thinks: bool = True, likelihood: Callable[[str, str], float] = lambda prompt, choice: -1.0
) -> Reasoner:
    """A model that says `say(all text before, whether this is a trace)`; a trace without `<|think_end|>` in it never ends."""
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer("bytes")
    add_marker_tokens(tokenizer, MarkersConfig())
    chat = Chat(tokenizer, MarkersConfig())
    end = "<|think_end|>"

    def samples(prompt: tuple[int, ...], n: int) -> list[list[int]]:
        tracing = prompt[-1] == chat.start_id
        text = say(chat.decode(prompt), tracing)
        if tracing:
            before, closed, _ = text.partition(end)
            ids = [*chat.encode_text(before), *([chat.end_id] if closed else [])]
            return [ids if closed else (ids * CONTEXT)[:4096] for _ in range(n)]
        return [[*chat.encode_text(text), chat.end_of_turn_id] for _ in range(n)]

    def score(rows: Sequence[Row]) -> list[Tensor]:
        found = [likelihood(chat.decode(row.prompt_ids), chat.decode(row.tail_ids)) for row in rows]
        return [torch.tensor([logp]) for logp in found]

    writer = Writer(ScriptedSampler(samples), Markers(chat.start_id, chat.end_id), chat.stop_ids, 2048, 2048)
    return Reasoner("scripted", chat, writer, score, thinks, CONTEXT)


def teach(folder: str, answer: str, *, steps: int = 150) -> None:
    """Trains a saved model to give one answer to whatever is asked: bytes after bytes, so that its greedy answers are no noise."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tail = tokenizer("assistant:" + answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
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
