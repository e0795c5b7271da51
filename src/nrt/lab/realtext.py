"""A small Llama trained from scratch on real text: does Native Reasoning Training find anything in it?

    python -m nrt.lab.realtext DATA OUT      # base model, pairs, and what the base can do
    nrt compare realtext model=OUT/base data.train=OUT/train.jsonl data.valid=OUT/test.jsonl --methods sft,nrt-ws-neg-log-p --seeds 2
    nrt train realtext-text model=OUT/base data.train=OUT/text-train.jsonl data.valid=OUT/text-test.jsonl run=NAME

DATA holds gsm8k/{train,test}.jsonl.gz and p3_t0_sample/p3_t0_sample.jsonl.gz. The base reads half of GSM8K's training problems with their
solutions and most of P3's prompts with their completions; training asks the rest, of which it sees questions and final answers alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import defaultdict
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
from nrt.lab.base import CHAT_TEMPLATE, Stage, fit
from nrt.lab.world import share_of
from nrt.models import quiet
from nrt.training.setup import prepare
from nrt.types import Pair, Trace

VOCABULARY = 4096
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
LONGEST = 192  # tokens of a document
TEMPLATE = CHAT_TEMPLATE.replace(" {{ message['content'] }}", "{{ message['content'] }}").replace(" {{ eos_token }}", "{{ eos_token }}")


@dataclass(frozen=True)
class Item:
    """A question, its final answer, and the solution that leads there (P3: none)."""

    source: str  # "gsm8k" or "p3"
    split: str  # "corpus", "train" or "test"
    question: str
    answer: str
    work: str = ""

    def document(self, rng: Random) -> str:
        """What the base reads: with the solution half of the time, where there is one."""
        worked = self.work and rng.random() < 0.5
        return f"{BOS}{self.question}\n{self.work}\n{self.answer}{EOS}" if worked else f"{BOS}{self.question}\n{self.answer}{EOS}"


def read_items(data: Path) -> list[Item]:
    """All rows, each in one split: GSM8K's test set is the test, its training set is parted by hash; P3 60/20/20 % by hash."""
    items = []
    for file in ("train", "test"):
        for row in _rows(data / "gsm8k" / f"{file}.jsonl.gz"):
            work, _, answer = re.sub(r"<<.*?>>", "", row["answer"]).rpartition("\n#### ")
            split = "test" if file == "test" else "corpus" if share_of(row["question"]) < 0.5 else "train"
            items.append(Item("gsm8k", split, row["question"], answer, work))
    for row in _rows(data / "p3_t0_sample" / "p3_t0_sample.jsonl.gz"):
        share = share_of(row["prompt"])
        split = "corpus" if share < 0.6 else "train" if share < 0.8 else "test"
        items.append(Item("p3", split, row["prompt"].strip(), row["completion"].strip()))
    return items


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; digits stand alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=TEMPLATE)


def build_base(items: Sequence[Item], folder: Path, *, steps: int, seed: int, console: Console) -> None:
    """Trains tokenizer and model (3.4 M parameters) on the corpus split and saves them."""
    corpus = [item for item in items if item.split == "corpus"]
    tokenizer = build_tokenizer([f"{item.question}\n{item.work}\n{item.answer}" for item in corpus])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=8,
            intermediate_size=688, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=256**-0.5,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    with console.status("base model") as status:
        fit(
            model,
            _documents(corpus, tokenizer, seed),
            Stage("open", steps, 1e-3),
            rows_a_step=32,
            width=LONGEST,
            progress=lambda step, total, loss: status.update(f"base model: step {step}/{total}, loss {loss:.2f}"),
        )
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_pairs(items: Sequence[Item], folder: Path) -> None:
    """train.jsonl and test.jsonl, shuffled; `work` is for the readout alone."""
    for split in ("train", "test"):
        rows = [item for item in items if item.split == split]
        Random(0).shuffle(rows)
        lines = (json.dumps({"question": r.question, "answer": r.answer, "source": r.source, "work": r.work}) + "\n" for r in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_documents(items: Sequence[Item], folder: Path) -> None:
    """text-train.jsonl and text-test.jsonl: GSM8K's problems with their solutions as raw text, in the form in which the base reads them."""
    for split in ("train", "test"):
        rows = [item for item in items if item.split == split and item.work]
        Random(0).shuffle(rows)
        lines = (json.dumps({"text": f"{r.question}\n{r.work}\n{r.answer}"}) + "\n" for r in rows)
        (folder / f"text-{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def readout(folder: Path, console: Console, questions: int = 300) -> dict[str, dict[str, float]]:
    """Mean probability of an answer token (geometric mean) after the null trace, the gold solution, and another question's solution."""
    config = load_config("realtext", [f"model={folder / 'base'}", f"data.train={folder / 'test.jsonl'}", "data.shuffle=false"])
    parts = prepare(config)
    policy, found = parts.stepper.policy, {}
    table = Table("source", "questions", "null trace", "gold solution", "another's solution")
    for source in ("gsm8k", "p3"):
        pairs = [pair for pair in parts.data.pairs if pair.example.source == source][:questions]
        works = [tuple(parts.tokenizer.encode(pair.example.extra["work"], add_special_tokens=False)) for pair in pairs]
        values = {"null": _likelihood([null_row(pair, policy.markers) for pair in pairs], pairs, policy)}
        if source == "gsm8k":
            for name, traces in (("gold", works), ("swapped", works[1:] + works[:1])):
                rows = [trace_row(pair, Trace(ids, True), policy.markers) for pair, ids in zip(pairs, traces, strict=True)]
                values[name] = _likelihood(rows, pairs, policy)
        found[source] = values
        table.add_row(source, str(len(pairs)), *(f"{values[name]:.3f}" if name in values else "–" for name in ("null", "gold", "swapped")))
    console.print(table)
    return found


def _likelihood(rows: Sequence[Any], pairs: Sequence[Pair], policy: Any) -> float:
    tails = policy.score(rows)
    means = [logp[-len(pair.answer_ids) :].mean().item() for (logp, _), pair in zip(tails, pairs, strict=True)]
    return torch.tensor(fmean(means)).exp().item()


def _documents(corpus: Sequence[Item], tokenizer: Any, seed: int) -> Iterator[list[int]]:
    """Documents without end, each item once an epoch; those that are too long are left out."""
    rng = Random(seed)
    while True:
        for item in rng.sample(corpus, len(corpus)):
            ids = tokenizer.encode(item.document(rng), add_special_tokens=False)
            if len(ids) <= LONGEST:
                yield ids


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    given, console = parser.parse_args(), Console()
    torch.set_num_threads(1)
    items = read_items(given.data)
    counts: dict[str, int] = defaultdict(int)
    for item in items:
        counts[f"{item.source} {item.split}"] += 1
    console.print(dict(counts))
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "base").is_dir():
        build_base(items, given.out / "base", steps=given.steps, seed=given.seed, console=console)
    write_pairs(items, given.out)
    write_documents(items, given.out)
    readout(given.out, console)


if __name__ == "__main__":
    main()
