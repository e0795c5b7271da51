"""Rows in the forms in which authors and hub publish them come out in one form, and what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nrt.errors import InputError
from nrt.eval.tasks import data
from tests.eval.benchmarks import write_benchmarks


def write(folder: Path, name: str, *rows: Any) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(folder)


def test_mmlus_answer_is_a_letter(tmp_path):
    row = {"subject": "law", "question": "?", "choices": ["w", "x", "y", "z"], "answer": 2}
    assert data.mmlu(folder=write(tmp_path, "mmlu/test.jsonl", row))["test"] == [
        row | {"answer": "C"}
    ]


def test_popqas_names_are_a_list(tmp_path):
    """The hub has JSON in a string; some copies Python's repr."""
    rows = [
        {"question": "q", "possible_answers": names}
        for names in (["a", "b'c"], '["a", "b\'c"]', "['a', \"b'c\"]")
    ]
    found = data.popqa(folder=write(tmp_path, "popqa/popqa.jsonl", *rows))["test"]
    assert found == [{"question": "q", "possible_answers": ["a", "b'c"]}] * 3


def test_drops_official_answers(tmp_path):
    """One answer and validated ones, each a number, spans or a date; equal ones once."""
    date = {"day": "", "month": "", "year": ""}
    official = {
        "query_id": "q", "passage": "p", "question": "?", "section_id": "s",
        "answer": {"number": "", "date": date, "spans": ["a", "b"], "worker_id": "", "hit_id": ""},
        "validated_answers": {
            "number": ["3", "", ""],
            "date": [date, date, {"day": "4", "month": "May", "year": ""}],
            "spans": [[], ["a", "b"], []],
        },
    }  # fmt: skip
    (found,) = data.drop(folder=write(tmp_path, "drop/drop.jsonl", official))["test"]
    assert found == {
        "query_id": "q",
        "passage": "p",
        "question": "?",
        "answers": [["a", "b"], ["3"], ["4 May"]],
    }


def test_truthfulqas_targets(tmp_path):
    authors = {"question": "q", "mc1_targets": {}, "mc2_targets": {"yes": 1, "no": 0}}
    hub = {
        "question": "q",
        "mc1_targets": {},
        "mc2_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
    }
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "mc_task.json").write_text(json.dumps([authors, hub]))
    found = data.truthfulqa(folder=str(tmp_path))["test"]
    assert found == [{"question": "q", "choices": ["yes", "no"], "labels": [1, 0]}] * 2


def test_every_benchmark_of_a_folder(tmp_path):
    folder = str(write_benchmarks(tmp_path))
    assert len(data.bbh("snarks", folder=folder)["test"]) == 2
    sizes = {
        name: len(getattr(data, name)(folder=folder)["test"])
        for name in data.FILES
        if name != "bbh"
    }
    expected = {"mmlu": 3, "drop": 3, "popqa": 2, "truthfulqa": 3, "gsm8k": 3, "math": 20}
    assert sizes == expected | {"humaneval": 1, "humaneval_plus": 1, "ifeval": 2}


def test_a_folder_without_the_benchmark(tmp_path):
    with pytest.raises(
        InputError, match=r"has no file of bbh: expected bbh/snarks\.json or .*, plain or with \.gz"
    ):
        data.bbh("snarks", folder=str(tmp_path))


def test_a_row_that_cannot_be_read(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(
        '{"question": "q", "answer": "#### 1"}\n{"question": '
    )
    with pytest.raises(InputError, match=r"test\.jsonl:2:"):
        data.gsm8k(folder=str(tmp_path))


def test_without_network_and_cache_the_dataset_is_named(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"gsm8k needs the Hugging Face dataset openai/gsm8k.*--data DIR"
    ):
        data.gsm8k()
