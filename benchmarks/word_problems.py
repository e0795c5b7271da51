"""Two-step word problems from GSM8K, for the pretrained model of docs/real-model.md.

    python -m benchmarks.word_problems gsm8k word-problems

reads gsm8k/train.jsonl.gz and gsm8k/test.jsonl.gz, and writes word-problems/train.jsonl and
word-problems/test.jsonl: the short problems whose solution has two calculations with whole numbers
up to 100. Before each question stand two worked examples, the same ones always. Answers hold no
work. Test problems are GSM8K's own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nrt.lab.arithmetic import WordProblem, messages
from nrt.lab.dataset import write_jsonl

CALCULATION = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")
ANY_CALCULATION = re.compile(r"<<[^>]*>>")
QUESTION_WORDS, LARGEST = 40, 100
EXAMPLES = 2  # worked examples: the first problems of the training file


def problems(source: Path) -> Iterator[WordProblem]:
    """Yield the problems of a GSM8K file that are short enough and have two calculations."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            solution, _, result = row["answer"].partition("####")
            calculations = CALCULATION.findall(solution)
            numbers = [int(n) for a, _, b, c in calculations for n in (a, b, c)]
            if (
                len(calculations) == len(ANY_CALCULATION.findall(solution)) == 2
                and max(numbers) <= LARGEST
                and len(row["question"].split()) <= QUESTION_WORDS
            ):
                work = " ".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in calculations)
                answer = f"The answer is {result.strip()}."
                yield WordProblem("word-problem", row["question"].strip(), work, answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    train = list(problems(arguments.source / "train.jsonl.gz"))
    examples, train = train[:EXAMPLES], train[EXAMPLES:]
    splits = {"train": train, "test": list(problems(arguments.source / "test.jsonl.gz"))}
    for name, members in splits.items():
        rows = [
            {"messages": messages(problem, examples), "source": problem.family}
            for problem in members
        ]
        write_jsonl(arguments.folder / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
