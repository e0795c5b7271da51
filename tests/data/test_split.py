"""`nrt data split`: no question is in both files, and no row is lost or changed."""

import json
from collections import Counter
from random import Random

import pytest

from nrt.config import RowsConfig, TextConfig
from nrt.data.split import split_rows
from nrt.errors import InputError

ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "n": n} for n in range(40)]
AGAIN = [{**row, "question": f"  {row['question'].upper()}", "n": -1} for row in ROWS[:10]]
READING = RowsConfig()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def folded(rows):
    return {row["question"].casefold().strip() for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_questions_are_in_one_file_whole(tmp_path, seed):
    """A question that differs in case and white space only is the same."""
    path = write(tmp_path / "all.jsonl", ROWS + AGAIN)
    result = split_rows(path, READING, tmp_path / "out", valid=8, seed=seed)
    train, valid = read(tmp_path / "out" / "train.jsonl"), read(tmp_path / "out" / "valid.jsonl")
    assert (len(train), len(valid)) == (result.train, result.valid)
    assert result.valid in (8, 9), "the last question may come twice"
    assert not folded(train) & folded(valid)
    assert Counter(map(str, train + valid)) == Counter(map(str, ROWS + AGAIN))


def test_the_draw_depends_on_seed_and_questions_only(tmp_path):
    drawn = {}
    for name, rows, seed in (
        ("a", ROWS, 0),
        ("b", Random(1).sample(ROWS, len(ROWS)), 0),
        ("c", ROWS, 1),
    ):
        path = write(tmp_path / f"{name}.jsonl", rows)
        split_rows(path, READING, tmp_path / name, valid=8, seed=seed)
        drawn[name] = folded(read(tmp_path / name / "valid.jsonl"))
    assert drawn["a"] == drawn["b"] != drawn["c"]


def test_rows_that_cannot_be_used_are_in_neither(tmp_path):
    path = write(tmp_path / "all.jsonl", [*ROWS, {"question": "", "answer": "x", "n": 0}])
    result = split_rows(path, READING, tmp_path / "out", valid=8)
    assert [(bad.number, "is empty" in bad.message) for bad in result.bad] == [(41, True)]
    assert result.train + result.valid == 40


def test_refusals(tmp_path):
    path, out = write(tmp_path / "all.jsonl", ROWS), tmp_path / "out"
    with pytest.raises(InputError, match="40 validation rows leave none to train on: there are 40"):
        split_rows(path, READING, out, valid=40)
    with pytest.raises(InputError, match="not documents"):
        split_rows(path, RowsConfig(text=TextConfig()), out, valid=8)
    assert not out.exists()
    split_rows(path, READING, out, valid=39)
    with pytest.raises(InputError, match="already exists"):
        split_rows(path, READING, out, valid=8)
