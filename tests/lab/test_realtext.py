"""GSM8K as raw text, from items made by hand."""

import json

from nrt.lab.realtext import Item, write_documents


def test_documents_are_what_the_base_reads(tmp_path):
    """The splits stay apart; rows without a solution (P3) and the corpus are left out."""
    items = [
        Item("gsm8k", "train", "How many?", "3", work="1 + 2 = 3"),
        Item("gsm8k", "test", "And now?", "4", work="2 + 2 = 4\nSo it is 4."),
        Item("gsm8k", "corpus", "Before?", "5", work="5 = 5"),
        Item("p3", "train", "Who?", "She"),
    ]
    write_documents(items, tmp_path)
    found = {split: read(tmp_path / f"text-{split}.jsonl") for split in ("train", "test")}
    assert found == {"train": [{"text": "How many?\n1 + 2 = 3\n3"}], "test": [{"text": "And now?\n2 + 2 = 4\nSo it is 4.\n4"}]}


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
