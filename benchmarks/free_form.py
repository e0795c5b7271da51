"""Pairs whose answers no checker can judge: titles, summaries, paraphrases and the like, from P3.

    python -m benchmarks.free_form p3_t0_sample.jsonl.gz free-form

writes free-form/train.jsonl and free-form/test.jsonl for docs/real-model.md. The source has lines
with `template`, `prompt` and `completion`, as a sample of the T0 training mixture has them.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from nrt.lab.dataset import write_jsonl
from nrt.lab.world import hash_fraction

TASKS = ("gigaword_", "samsum_", "common_gen_", "glue_mrpc_generate_", "wiqa_what_")
"""Beginnings of templates: titles of news, summaries of dialogues, sentences from words,
paraphrases, steps of a process.
"""

PROMPT_WORDS, ANSWER_WORDS = 110, (5, 30)
TEST_SHARE = 0.15


def rows(source: Path) -> Iterator[dict[str, str]]:
    """Yield question, answer and source of the rows that are short enough."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            task = next((task for task in TASKS if row["template"].startswith(task)), None)
            question = row["prompt"].strip()
            answer = row["completion"].removesuffix("<|endoftext|>").strip()
            low, high = ANSWER_WORDS
            short = len(question.split()) <= PROMPT_WORDS and low <= len(answer.split()) <= high
            if task and short:
                yield {"question": question, "answer": answer, "source": task.rstrip("_")}


def is_test(row: Mapping[str, str]) -> bool:
    """Return whether a row is for tests: by its answer, which several prompts may share."""
    return hash_fraction(f"free-form {row['answer']}") < TEST_SHARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for row in rows(arguments.source):
        splits["test" if is_test(row) else "train"].append(row)
    for name, members in splits.items():
        write_jsonl(arguments.folder / f"{name}.jsonl", members)
        print(f"{name}: {len(members)} rows")


if __name__ == "__main__":
    main()
