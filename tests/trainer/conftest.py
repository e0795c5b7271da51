"""A tiny model on disk, a few pairs, and a config that trains on them in a second."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt.config import build_config

collect_ignore = [
    "breaks.py"
]  # a plugin: looking for doctests would import it, and its method be everybody's

WORDS = "what is one two three four plus ? the sum so we add them to get".split()


def make_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "\n", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %} {{ m['content'] }} {{ '\\n' if m['role'] != 'assistant' else eos_token }}{% endfor %} "
    return tokenizer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tiny"))


def write_model(folder, width=32):
    """A Llama of 2 layers, without the markers."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    return write_sums(tmp_path_factory.mktemp("pairs") / "train.jsonl")


def write_sums(path):
    """Sixteen pairs, of two kinds."""
    numbers = ["one", "two", "three", "four"]
    rows = [
        {
            "question": f"what is {a} plus {b} ?",
            "answer": f"the sum is {b}" if i % 2 else f"so we get {a}",
            "kind": f"kind-{i % 2}",
        }
        for i, (a, b) in enumerate((a, b) for a in numbers for b in numbers)
    ]
    return write_pairs(path, rows)


@pytest.fixture
def make_config(model_dir, pairs_file, tmp_path):
    """make_config(run="a", steps=3, **{"optimizer.lr": 1e-3}) → Config."""

    def make(**settings):
        return tiny_config(model_dir, pairs_file, **{"run": tmp_path / "run", **settings})

    return make


def tiny_config(model_dir, pairs_file, run, **settings):
    values = {
        "model": str(model_dir), "run": str(run), "steps": 3, "batch": 4, "traces": 3, "max_trace_tokens": 6,
        "max_answer_tokens": 8, "max_prompt_tokens": 16, "eval_every": 2, "save_every": 2, "threads": 1,
        "data": {"train": str(pairs_file), "valid": str(pairs_file), "columns": {"source": "kind"}},
        "heldout": {"rows": 6, "checker": "exact"}, "optimizer": {"lr": 1e-2},
    }  # fmt: skip
    return build_config(values, _nest(settings))


def _nest(settings):
    nested = {}
    for key, value in settings.items():
        target = nested
        *outer, last = key.split(".")
        for part in outer:
            target = target.setdefault(part, {})
        target[last] = value
    return nested
