"""`python -m benchmarks.data [--quick]`: from a JSONL file to a check and tokens, with a cold cache.

200,000 rows with answers of 400 tokens, of words drawn at random from real text, under a byte-level BPE of 32,000 trained on the same
text. Bars: 4 minutes on two cores, 2 GiB over all processes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = Path(__file__).parents[2] / "shared" / "data" / "p3_t0_sample" / "p3_t0_sample.jsonl.gz"
ROWS, ANSWER_TOKENS, VOCABULARY = 200_000, 400, 32_000
MOST_SECONDS, MOST_BYTES = 240, 2 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a fiftieth of the rows; the bar for time shrinks with them",
    )
    parser.add_argument(
        "--text",
        type=Path,
        default=TEXT,
        help="JSONL (gz) whose prompts and completions give the words",
    )
    arguments = parser.parse_args()
    rows = ROWS // 50 if arguments.quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        file, model = Path(folder) / "rows.jsonl", Path(folder) / "model"
        with gzip.open(arguments.text, "rt") as lines:
            texts = [
                text
                for line in lines
                for text in (json.loads(line)["prompt"], json.loads(line)["completion"])
            ]
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(model)
        write_rows(file, rows, sorted({word for text in texts for word in text.split()}), tokenizer)
        print(f"{rows:,} rows, {file.stat().st_size / 2**20:.0f} MiB", flush=True)
        command = [
            sys.executable,
            "-m",
            "nrt",
            "data",
            "check",
            str(file),
            f"model={model}",
            "--json",
        ]
        began = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, "NRT_CACHE": f"{folder}/cache"},
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.perf_counter() - began
        again = time.perf_counter()
        subprocess.run(
            command,
            env={**os.environ, "NRT_CACHE": f"{folder}/cache"},
            stdout=subprocess.PIPE,
            check=True,
        )
        again = time.perf_counter() - again
        cache = sum(
            path.stat().st_size for path in Path(folder, "cache").rglob("*") if path.is_file()
        )
    found = json.loads(done.stdout)["train"]
    # Largest child and this process; the child starts none of its own.
    peak = 1024 * (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    answers = f"answers of {found['answer']['mean']:.0f} tokens, {found['rows']:,} rows"
    print(f"{answers}; cache of {cache / 2**20:.0f} MiB, from it {again:.0f} s")
    most = MOST_SECONDS * rows / ROWS + 20 * arguments.quick  # the start alone takes seconds
    print(
        f"{seconds:.0f} s (bar {most:.0f} s), {peak / 2**30:.2f} GiB over all processes (bar {MOST_BYTES / 2**30:.0f} GiB)"
    )
    sys.exit(seconds > most or peak > MOST_BYTES)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 32,000."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def write_rows(file: Path, rows: int, words: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows whose words are drawn anew each time, so that none repeats another."""
    rng = random.Random(0)
    sample = " ".join(rng.choices(words, k=20_000))
    per_answer = round(ANSWER_TOKENS * 20_000 / len(tokenizer(sample)["input_ids"]))
    with file.open("w", encoding="utf-8") as out:
        for i in range(rows):
            row = {
                "question": f"{i}: " + " ".join(rng.choices(words, k=40)),
                "answer": " ".join(rng.choices(words, k=per_answer)),
            }
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
