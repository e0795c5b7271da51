"""The pairs that benchmarks make from GSM8K and P3, read back from files."""

import gzip
import json
import sys

from benchmarks import free_form, word_problems


def write_gz(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    module.main()


def problem(question, solution, result):
    return {"question": question, "answer": f"{solution}\n#### {result}"}


def test_word_problems_have_two_calculations_and_answers_without_work(tmp_path, monkeypatch):
    two = "He has 9*2=<<9*2=18>>18, then 18-2=<<18-2=16>>16."
    rows = [
        problem("One?", two, 16),
        problem("Two?", two, 16),
        problem("Three?", two, 16),
        problem("One step only?", "9*2=<<9*2=18>>18", 18),
        problem("A fraction?", "<<9*2=18>>18 <<18*.5=9>>9", 9),
        problem("Too large?", "<<90*2=180>>180 <<180-2=178>>178", 178),
        problem("word " * 41, two, 16),
    ]
    write_gz(tmp_path / "train.jsonl.gz", rows)
    write_gz(tmp_path / "test.jsonl.gz", rows[2:])
    run(word_problems, monkeypatch, tmp_path, tmp_path / "out")
    train, test = (read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "test"))
    assert train == test
    assert [turn["content"] for turn in train[0]["messages"]] == [
        "One?",
        "9 * 2 = 18. 18 - 2 = 16.\nThe answer is 16.",
        "Two?",
        "9 * 2 = 18. 18 - 2 = 16.\nThe answer is 16.",
        "Three?",
        "The answer is 16.",
    ]


def test_no_free_form_answer_is_in_both_splits(tmp_path, monkeypatch):
    rows = [
        {
            "template": f"gigaword_{i % 3}",
            "prompt": f"Text {i}",
            "completion": f" a title of number {i % 40} <|endoftext|>",
        }
        for i in range(120)
    ]
    rows.append({"template": "other_", "prompt": "Text", "completion": "five words are in here"})
    rows.append({"template": "gigaword_", "prompt": "Text", "completion": "too short"})
    write_gz(tmp_path / "p3.jsonl.gz", rows)
    run(free_form, monkeypatch, tmp_path / "p3.jsonl.gz", tmp_path / "out")
    train, test = (read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "test"))
    assert len(train) + len(test) == 120
    assert train
    assert test
    assert not {row["answer"] for row in train} & {row["answer"] for row in test}
    assert {row["source"] for row in train} == {"gigaword"}


def test_no_passage_of_a_test_question_is_trained_on():
    def row(first, answer):
        question = f"What is the next step?\n- {first}\n- It rains on them."
        return {"question": question, "answer": answer, "source": "wiqa_what"}

    rows = [
        row(f"Clouds of kind {i // 2} gather.", f"the grass {i} grows again") for i in range(80)
    ]
    parts = free_form.split(rows)
    passages = [
        {question.splitlines()[1] for question in (row["question"] for row in part)}
        for part in parts.values()
    ]
    assert all(passages)
    assert not passages[0] & passages[1]
    # The instruction and the step that all rows share are not passages: most rows are trained on.
    assert len(parts["train"]) > 40
