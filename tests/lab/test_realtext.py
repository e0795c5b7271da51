"""Experiment on real text: its documents, from items made by hand, and its recipes."""

import json
from pathlib import Path

from benchmarks.realtext import Item, write_documents
from nrt.config import load_config


def test_documents_have_the_form_that_the_base_model_reads(tmp_path):
    """Splits are separate; rows without a solution (P3) and the corpus are left out."""
    items = [
        Item("gsm8k", "train", "How many?", "3", work="1 + 2 = 3"),
        Item("gsm8k", "test", "And now?", "4", work="2 + 2 = 4\nSo it is 4."),
        Item("gsm8k", "corpus", "Before?", "5", work="5 = 5"),
        Item("p3", "train", "Who?", "She"),
    ]
    write_documents(items, tmp_path)
    assert read(tmp_path / "text-train.jsonl") == [{"text": "How many?\n1 + 2 = 3\n3"}]
    assert read(tmp_path / "text-test.jsonl") == [{"text": "And now?\n2 + 2 = 4\nSo it is 4.\n4"}]


def test_its_recipes_load(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    pairs = load_config("benchmarks/realtext.yaml")
    text = load_config("benchmarks/realtext-text.yaml")
    assert (pairs.steps, text.steps) == (100, 40)
    assert text.optimizer == pairs.optimizer


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
