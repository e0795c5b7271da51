"""Pairs whose answers no checker can judge: titles, summaries, paraphrases and the like, from P3.

    python -m benchmarks.free_form p3_t0_sample.jsonl.gz free-form

writes free-form/train.jsonl and free-form/test.jsonl for docs/real-model.md. The source has lines
with `template`, `prompt` and `completion`, as a sample of the T0 training mixture has them.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nrt.lab.dataset import write_jsonl
from nrt.lab.world import hash_fraction

TASKS = ("gigaword_", "samsum_", "common_gen_", "glue_mrpc_generate_", "wiqa_what_")
"""Beginnings of templates: titles of news, summaries of dialogues, sentences from words,
paraphrases, steps of a process.
"""

PROMPT_WORDS, ANSWER_WORDS = 110, (5, 30)
TEST_SHARE = 0.15
MOST_TEMPLATES = 4
"""A line that more rows share is the template's instruction and not part of a passage."""

Row = Mapping[str, str]


def rows(source: Path) -> Iterator[Row]:
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


def split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Split the rows into `train` and `test`.

    A hash of the answer chooses the test rows. Several rows may have the same passage: a dialogue
    in two templates, or one process whose first and last steps are asked for. So rows that share
    an answer, a question or a line of a passage with a test row are in neither part.
    """
    test = [row for row in rows if hash_fraction(f"free-form {row['answer']}") < TEST_SHARE]
    counts = Counter(line for row in rows for line in _lines(row))
    instructions = {line for line, count in counts.items() if count > MOST_TEMPLATES}
    tested = {line for row in test for line in _lines(row)} - instructions
    train = [row for row in rows if row not in test and not tested & _lines(row)]
    return {"train": train, "test": test}


def _lines(row: Row) -> set[str]:
    """Return the lines of a row, the answer's too, without their punctuation at the ends."""
    text = f"{row['question']}\n{row['answer']}"
    return {line.strip(" -.") for line in text.splitlines()} - {""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for name, members in split(list(rows(arguments.source))).items():
        write_jsonl(arguments.folder / f"{name}.jsonl", members)
        print(f"{name}: {len(members)} rows")


if __name__ == "__main__":
    main()
