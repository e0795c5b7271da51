"""Real data, each read by the mapping that docs/data.md gives for it; the counts are those of the files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nrt.config import build_config
from nrt.data.files import find_tables
from nrt.data.rows import BadRow
from nrt.data.sources import iterate_examples

DATA = Path(__file__).parents[3] / "shared" / "data"
DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


def lines(text: str) -> int:
    return sum(1 for line in text.split("\n") if line.strip())


def examples(text: str) -> int:
    return len(json.loads(text)["examples"])


def csv_rows(text: str) -> int:
    return len(list(csv.DictReader(io.StringIO(text))))


FILES: list[tuple[str, Callable[[str], int]]] = [
    ("gsm8k/*.jsonl.gz", lines),
    ("p3_t0_sample/p3_t0_sample.jsonl.gz", lines),
    ("mmlu/dev.jsonl.gz", lines),
    ("drop/drop_validation_olmes1000.jsonl.gz", lines),
    ("popqa/popqa_subset.jsonl.gz", lines),
    ("humaneval/HumanEval.jsonl.gz", lines),
    ("truthfulqa/**/TruthfulQA.csv.gz", csv_rows),
    ("bbh/bbh/*.json", examples),
]


def mappings(title: str = "shared data") -> dict[str, dict[str, Any]]:
    """The YAML block of the document with that first line, file by file."""
    block = DOCUMENT.read_text(encoding="utf-8").split(f"```yaml\n# {title}\n")[1].split("```")[0]
    return yaml.safe_load(block)


EMPTY = {"p3_t0_sample": 140}
"""Rows whose answer is `<|endoftext|>` and nothing else."""


@pytest.mark.parametrize(("pattern", "count"), FILES)
def test_counts_are_the_files(pattern: str, count: Callable[[str], int]) -> None:
    files = sorted(DATA.glob(pattern))
    if not files:
        pytest.skip(f"../shared/data/{pattern} is absent")
    config = build_config({"data": mappings()[pattern.split("/")[0]]})
    for file in files:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        (table,) = find_tables(str(file))
        items = list(iterate_examples(table, config.data))
        assert len(items) == count(raw.decode("utf-8-sig"))
        good = [item for item in items if not isinstance(item, BadRow)]
        assert len(items) - len(good) == EMPTY.get(pattern.split("/")[0], 0)
        assert all(
            example.answer.strip() and example.messages[-1].content.strip() for example in good
        )


def test_every_mapping_is_tested() -> None:
    assert set(mappings()) == {pattern.split("/")[0] for pattern, _ in FILES}
