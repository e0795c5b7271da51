"""Tiny models with random weights and a tiny tokenizer: every architecture that tests care about, built in milliseconds.

Weights are large enough (`initializer_range`) that attention, softcaps and windows show in the logits. Where an architecture has a
sliding window, it is 5 tokens: shorter than the sequences of the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from nrt.types import Role, Row

VOCAB = 41
BOS, EOS, PAD = 1, 2, 0

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied-mha": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": {"model_type": "gpt2", "n_positions": 512},
}


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, attention: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A float32 causal LM in eval mode. `architecture` is a key of `ARCHITECTURES` or any model type; `changes` go over its config."""
    values = {**_SHAPE, **ARCHITECTURES.get(architecture, {"model_type": architecture}), **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    if not attention and values.get("attn_logit_softcapping"):
        attention = "eager"  # as in `load_model`
    if attention:
        config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float().eval()


def hostile(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a generation_config that must not leak into anything."""
    config = model.generation_config
    assert config is not None
    config.update(
        do_sample=True,
        temperature=0.1,
        top_k=2,
        top_p=0.5,
        repetition_penalty=3.0,
        forced_bos_token_id=7,
        max_new_tokens=2,
    )
    config.update(suppress_tokens=list(range(20, 30)), forced_eos_token_id=EOS)
    return model


def row(prompt: Iterable[int], tail: Iterable[int]) -> Row:
    """A row whose tail is an answer: every token of the vocabulary may stand in each place."""
    tail = tuple(tail)
    return Row(tuple(prompt), tail, (Role.ANSWER,) * len(tail), end_sampled=False)


def random_rows(seed: int, shapes: Iterable[tuple[int, int]], vocab: int = VOCAB) -> list[Row]:
    """Rows of the given (prompt, tail) lengths with random ids above the control tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, vocab, (p + t,), generator=generator).tolist() for p, t in shapes]
    return [row(x[:p], x[p:]) for x, (p, _) in zip(ids, shapes, strict=True)]


SENTENCES = (
    "well anna , when you begin at 3 then add 4 the final digit is 7 .",
    "we have 3 ; that makes 7 ;\n",
    "where does bob live ? the home of bob is green .\n\n",
    "{'role': 'user'} naïve café – 東京 🙂",
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_tokenizer(
    kind: str = "bytes", *, vocab: int = 300, chat_template: str | None = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """A fast tokenizer trained on `SENTENCES`: `bytes` (byte-level BPE), `unigram` (Metaspace with its dummy prefix and byte
    fallback) or `words` (one id a word; the line break is a word). Ids 0, 1, 2, 3 are <pad>, <bos>, <eos>, <unk>."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(
            Regex(r"\n|[^ \n]+"), behavior="removed", invert=True
        )
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab, special_tokens=special, show_progress=False
        )
    else:
        raise ValueError(f"no tiny tokenizer of kind {kind}")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=chat_template,
    )
