"""A model without traces scores what lm-evaluation-harness itself says it scores, row by row: the same tasks through its own evaluator
and its own transformers model, and through ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt.analysis.benchmarks import benchmark_scores
from nrt.errors import InputError
from nrt.eval.asking import Backend, ask_missing
from nrt.eval.harness import Decoding, build_row, load_tasks, named_docs
from nrt.eval.questions import ReplyStore
from nrt.eval.reasoner import find_model
from nrt.eval.suite import prepare
from tests.eval.benchmarks import write_benchmarks
from tests.eval.reasoners import save_tiny_model, teach

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Says one thing to everything, which is right now and then."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("model") / "plain", thinks=False, context=16384
    )
    teach(folder, "so the answer is (B). 8")
    return folder


def theirs(model: str, tasks: Any, rows: dict[str, list[int]]) -> Any:
    """lm-eval's own figures: task → its samples."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    make: Any = HFLM
    lm = make(
        pretrained=AutoModelForCausalLM.from_pretrained(model),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=4,
    )
    found: Any = evaluate(
        lm, {"tasks": tasks, "groups": {}, "group_map": {}}, samples=rows, apply_chat_template=True, fewshot_as_multiturn=True,
        bootstrap_iters=0,
    )  # fmt: skip
    return found["samples"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["own rows", "shared rows"])
def test_scores_are_lm_evals_own(where, folder, model, tmp_path):
    if where == "shared rows":
        if not SHARED.is_dir():
            pytest.skip("../shared/data is absent")
        folder = SHARED
    plan = prepare(
        ["gsm8k", "bbh", "truthfulqa", "ifeval"], Decoding(), folder=str(folder), limit=ROWS
    )
    replies = ReplyStore(tmp_path / "replies")
    ask_missing(
        find_model(model), plan.questions(), replies, Backend(device="cpu"), lambda count: None
    )
    ours = dict(plan.records(replies))

    asked = [row for rows in plan.rows.values() for row in rows]
    tasks = {row.question.task: row.task for row in asked}
    places = {name: [place for place, (row, _) in enumerate(named_docs(task)) if (name, row) in {(a.question.task, a.id) for a in asked}]
              for name, task in tasks.items()}  # fmt: skip
    samples = theirs(model, tasks, places)
    compared = 0
    for name, rows in ours.items():
        for task in {row["task"] for row in rows}:
            mine = [row for row in rows if row["task"] == task]
            for row, sample in zip(
                mine, sorted(samples[task], key=lambda one: one["doc_id"]), strict=True
            ):
                compared += 1
                if name == "truthfulqa":
                    assert row["said"][0]["logps"] == pytest.approx(
                        [resps[0][0] for resps in sample["resps"]], abs=1e-3
                    )
                    assert row["score"] == pytest.approx(sample["score"], abs=1e-5)
                    continue
                assert row["said"][0]["answer"] == sample["resps"][0][0]
                assert row["score"] == sample["score"]
                if name == "ifeval":
                    assert (row["also"]["inst_loose"], row["also"]["inst_strict"]) == (
                        sample["inst_loose"],
                        sample["inst_strict"],
                    )
    assert compared == len(asked)
    scores = {
        score.benchmark: score.score for rows in ours.values() for score in benchmark_scores(rows)
    }
    assert scores["bbh"] > 0  # it is not the equality of zeros


def test_a_row_is_the_same_row_in_every_file(tmp_path):
    """The id is a hash of the content; the second of two equal rows has its own id."""
    rows = ['{"question": "a", "answer": "#### 1"}\n', '{"answer": "#### 2", "question": "b"}\n']
    for name, lines in (("x", rows), ("y", rows[::-1]), ("z", [rows[0], rows[0]])):
        (tmp_path / name / "gsm8k").mkdir(parents=True)
        (tmp_path / name / "gsm8k" / "test.jsonl").write_text("".join(lines))
    names = {}
    for where in "xyz":
        (task,) = load_tasks(["nrt_gsm8k"], folder=str(tmp_path / where))
        names[where] = [name for name, _ in named_docs(task)]
    assert names["y"] == names["x"][::-1]
    assert names["z"] == [names["x"][0], names["x"][0] + "-2"]


def test_a_task_that_asks_for_running_text_is_refused(folder):
    (task,) = load_tasks(
        [{"task": "ppl", "custom_dataset": lambda **_: {"test": load_tasks(["nrt_gsm8k"], folder=str(folder))[0].dataset["test"]},
          "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
          "metric_list": [{"metric": "word_perplexity"}]}]
    )  # fmt: skip
    ((name, doc), *_) = named_docs(task)
    with pytest.raises(
        InputError, match="ppl: nrt cannot run requests of type loglikelihood_rolling"
    ):
        build_row(task, name, doc, Decoding())
