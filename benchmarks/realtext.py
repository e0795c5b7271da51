"""Experiment on real text: a small Llama trained from scratch, then Native Reasoning Training.

    python -m benchmarks.realtext DATA OUT
    nrt compare benchmarks/realtext.yaml model=OUT/base data.train=OUT/train.jsonl \\
        data.valid=OUT/test.jsonl --methods sft,nrt-ws-neg-log-p --seeds 2
    nrt train benchmarks/realtext-text.yaml model=OUT/base data.train=OUT/text-train.jsonl \\
        data.valid=OUT/text-test.jsonl run=NAME

The first command builds and evaluates the base model and writes the data. Run all in the root of
the repository. DATA holds gsm8k/{train,test}.jsonl.gz and p3_t0_sample/p3_t0_sample.jsonl.gz. The
base model reads half of GSM8K's training problems with their solutions, and most of P3's prompts
with their completions. Training uses the remaining rows, of which it sees only questions and final
answers. Results: docs/real-text.md and docs/results/raw-text.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt.config import load_config
from nrt.data import null_row, trace_row
from nrt.lab.base import CHAT_TEMPLATE, Stage, train_on_documents
from nrt.lab.world import hash_fraction, split_of
from nrt.models import hide_progress_bars
from nrt.trainer.setup import prepare
from nrt.types import Pair, Row, Trace

RECIPE = Path(__file__).with_name("realtext.yaml")
VOCABULARY = 4096
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
MAX_TOKENS = 192  # of a document
# the miniature's template without the spaces that separate its words
TEMPLATE = CHAT_TEMPLATE.replace(" {{ message['content'] }}", "{{ message['content'] }}").replace(
    " {{ eos_token }}", "{{ eos_token }}"
)


@dataclass(frozen=True)
class Item:
    """One question with its final answer, and the solution that leads there (P3 has none)."""

    source: str  # "gsm8k" or "p3"
    split: str  # "corpus", "train" or "test"
    question: str
    answer: str
    work: str = ""

    def document(self, rng: Random) -> str:
        """Return a document for the base model, half of the time with the solution, if any."""
        if self.work and rng.random() < 0.5:
            return f"{BOS}{self.question}\n{self.work}\n{self.answer}{EOS}"
        return f"{BOS}{self.question}\n{self.answer}{EOS}"


def read_items(data: Path) -> list[Item]:
    """Return all rows, each in one split.

    The test set of GSM8K is the test split; its training set is split by hash into corpus and
    train. P3 is split by hash: 60 % corpus, 20 % train, 20 % test.
    """
    items = []
    for file in ("train", "test"):
        for row in _read_rows(data / "gsm8k" / f"{file}.jsonl.gz"):
            work, _, answer = re.sub(r"<<.*?>>", "", row["answer"]).rpartition("\n#### ")
            split = "test"
            if file == "train":
                split = "corpus" if hash_fraction(row["question"]) < 0.5 else "train"
            items.append(Item("gsm8k", split, row["question"], answer, work))
    for row in _read_rows(data / "p3_t0_sample" / "p3_t0_sample.jsonl.gz"):
        split = split_of(row["prompt"])
        items.append(Item("p3", split, row["prompt"].strip(), row["completion"].strip()))
    return items


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that splits numbers into digits."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=TEMPLATE,
    )


def build_base(
    items: Sequence[Item], folder: Path, *, steps: int, seed: int, console: Console
) -> None:
    """Train tokenizer and model (3.4 M parameters) on the corpus split, and save them."""
    corpus = [item for item in items if item.split == "corpus"]
    tokenizer = build_tokenizer([f"{item.question}\n{item.work}\n{item.answer}" for item in corpus])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=8,
            intermediate_size=688,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=256**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with console.status("base model") as status:

        def progress(step: int, total: int, loss: float) -> None:
            status.update(f"base model: step {step}/{total}, loss {loss:.2f}")

        train_on_documents(
            model,
            _documents(corpus, tokenizer, seed),
            Stage("open", steps, 1e-3),
            rows_per_step=32,
            width=MAX_TOKENS,
            progress=progress,
        )
    with hide_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_pairs(items: Sequence[Item], folder: Path) -> None:
    """Write train.jsonl and test.jsonl, shuffled; only `evaluate_base` reads the column work."""
    for split in ("train", "test"):
        rows = [
            {
                "question": item.question,
                "answer": item.answer,
                "source": item.source,
                "work": item.work,
            }
            for item in items
            if item.split == split
        ]
        _write_shuffled(folder / f"{split}.jsonl", rows)


def write_documents(items: Sequence[Item], folder: Path) -> None:
    """Write text-train.jsonl and text-test.jsonl, shuffled: GSM8K with its solutions as raw text.

    The base model reads documents of the same form.
    """
    for split in ("train", "test"):
        rows = [
            {"text": f"{item.question}\n{item.work}\n{item.answer}"}
            for item in items
            if item.split == split and item.work
        ]
        _write_shuffled(folder / f"text-{split}.jsonl", rows)


def evaluate_base(
    folder: Path, console: Console, questions: int = 300
) -> dict[str, dict[str, float]]:
    """Print and return what reading a solution is worth to the base model, by source.

    The value is the mean probability of an answer token (geometric mean): after the null trace,
    after the gold solution, and after the solution of another question.
    """
    settings = [
        f"model={folder / 'base'}",
        f"data.train={folder / 'test.jsonl'}",
        "data.shuffle=false",
    ]
    parts = prepare(load_config(str(RECIPE), settings))
    policy = parts.policy
    results = {}
    table = Table("source", "questions", "null trace", "gold solution", "another's solution")
    for source in ("gsm8k", "p3"):
        pairs = [pair for pair in parts.data.pairs if pair.example.source == source][:questions]
        null_rows = [null_row(pair, policy.markers) for pair in pairs]
        values = {"null": _likelihood(null_rows, pairs, policy)}
        if source == "gsm8k":
            works = []
            for pair in pairs:
                work = pair.example.extra["work"]
                works.append(tuple(parts.tokenizer.encode(work, add_special_tokens=False)))
            for name, traces in (("gold", works), ("swapped", works[1:] + works[:1])):
                rows = [
                    trace_row(pair, Trace(ids, True), policy.markers)
                    for pair, ids in zip(pairs, traces, strict=True)
                ]
                values[name] = _likelihood(rows, pairs, policy)
        results[source] = values
        cells = []
        for name in ("null", "gold", "swapped"):
            cells.append(f"{values[name]:.3f}" if name in values else "–")
        table.add_row(source, str(len(pairs)), *cells)
    console.print(table)
    return results


def _likelihood(rows: Sequence[Row], pairs: Sequence[Pair], policy: Any) -> float:
    """Return the geometric mean over pairs of the probability of an answer token."""
    means = []
    for (logp, _), pair in zip(policy.score(rows), pairs, strict=True):
        means.append(logp[-len(pair.answer_ids) :].mean().item())
    return torch.tensor(fmean(means)).exp().item()


def _documents(corpus: Sequence[Item], tokenizer: Any, seed: int) -> Iterator[list[int]]:
    """Yield documents without end, each item once per epoch; too long documents are left out."""
    rng = Random(seed)
    while True:
        for item in rng.sample(corpus, len(corpus)):
            ids = tokenizer.encode(item.document(rng), add_special_tokens=False)
            if len(ids) <= MAX_TOKENS:
                yield ids


def _read_rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_shuffled(path: Path, rows: list[dict[str, str]]) -> None:
    Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments, console = parser.parse_args(), Console()
    torch.set_num_threads(1)
    items = read_items(arguments.data)
    console.print(dict(Counter(f"{item.source} {item.split}" for item in items)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = arguments.out / "base"
    if not base.is_dir():
        build_base(items, base, steps=arguments.steps, seed=arguments.seed, console=console)
    write_pairs(items, arguments.out)
    write_documents(items, arguments.out)
    evaluate_base(arguments.out, console)


if __name__ == "__main__":
    main()
