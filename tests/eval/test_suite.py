"""The suite with scripted models that know the answers, or know them only in their traces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nrt.analysis.benchmarks import benchmark_scores
from nrt.errors import InputError
from nrt.eval.answering import answer_all
from nrt.eval.harness import Decoding
from nrt.eval.questions import ReplyStore
from nrt.eval.suite import BENCHMARKS, NINE, EvalPlan, prepare, resolve
from tests.eval.benchmarks import TRUTHFULQA, right_answer, write_benchmarks
from tests.eval.reasoners import scripted
from tests.eval.test_ifeval import FOLLOWED

SHARED = Path(__file__).parents[3] / "shared" / "data"
ANSWERED = [name for name in NINE if name not in ("truthfulqa", "ifeval")]
END = "<|think_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("data"))


def scores(plan: EvalPlan, reasoner: Any, tmp_path: Path) -> dict[str, float]:
    replies = ReplyStore(tmp_path / "replies")
    for task, found in answer_all(reasoner, plan.questions()):
        replies.add(task, found)
    return {
        one.benchmark: one.score
        for name, rows in plan.records(replies)
        for one in benchmark_scores(rows)
    }


def knowing(plan: EvalPlan, *, in_trace_only: bool = False) -> Any:
    """Says the right answer to whatever prompt of the plan it is given, in its answer or in nothing but its trace."""
    reasoner = scripted(lambda before, tracing: say(before, tracing))
    known = {}
    for name, rows in plan.rows.items():
        for row in rows:
            known[reasoner.chat.decode(reasoner.chat.encode_prompt(row.question.messages))] = (
                right_answer(name, row.doc)
            )

    def say(before: str, tracing: bool) -> str:
        prompt = before.partition("<|think_start|>")[0]
        if tracing:
            return (known[prompt] if in_trace_only else "hm") + END
        return "I do not know." if in_trace_only else known[prompt]

    return reasoner


def test_a_model_that_knows_the_answers_has_all_of_the_points(folder, tmp_path):
    plan = prepare([*ANSWERED, "ifeval", "humaneval-plus"], Decoding(), folder=str(folder))
    assert scores(plan, knowing(plan), tmp_path) == dict.fromkeys(
        [*ANSWERED, "ifeval", "humaneval-plus"], 1.0
    )


def test_an_answer_in_the_trace_alone_is_none(folder, tmp_path):
    plan = prepare(ANSWERED, Decoding(), folder=str(folder))
    assert scores(plan, knowing(plan, in_trace_only=True), tmp_path) == dict.fromkeys(ANSWERED, 0.0)


def answerable(name: str, doc: Any) -> bool:
    """Three BBH rows have a title for a letter; some of PopQA's names are longer than their cap in byte tokens."""
    if name == "bbh":
        return doc["target"] not in (
            "Monsters, Inc",
            "dearth, wind, & fire",
            "rita, sue and bob poo",
        )
    return name != "popqa" or len(right_answer(name, doc).encode()) <= 15


@pytest.mark.parametrize("name", [name for name in ANSWERED if name != "math"])
def test_both_on_the_benchmarks_own_rows(name, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip("../shared/data is absent")
    plan = prepare([name], Decoding(), folder=str(SHARED), limit=8 if name == "humaneval" else 108)
    plan = EvalPlan({name: [row for row in plan.rows[name] if answerable(name, row.doc)]})
    assert len(plan.rows[name]) >= (8 if name == "humaneval" else 90)
    assert scores(plan, knowing(plan), tmp_path / "a") == {name: 1.0}
    assert scores(plan, knowing(plan, in_trace_only=True), tmp_path / "b") == {name: 0.0}


def test_ifeval_through_hand_written_responses(tmp_path):
    if not (SHARED / "ifeval").is_dir():
        pytest.skip("../shared/data is absent")
    plan = prepare(["ifeval"], Decoding(), folder=str(SHARED))
    rows = [row for row in plan.rows["ifeval"] if row.doc["key"] in FOLLOWED]
    assert len(rows) == len(FOLLOWED) >= 20
    some = EvalPlan({"ifeval": rows})
    reasoner = scripted(
        lambda before, tracing: (
            "hm" + END if tracing else known[before.partition("<|think_start|>")[0]]
        )
    )
    chat = reasoner.chat
    known = {
        chat.decode(chat.encode_prompt(row.question.messages)): FOLLOWED[row.doc["key"]]
        for row in rows
    }
    assert scores(some, reasoner, tmp_path) == {"ifeval": 1.0}


def test_truthfulqa_through_scripted_likelihoods(folder, tmp_path):
    """log-probabilities −1, −2 and −3 in the order of the choices, of which the first two are true; without its end a trace counts 0."""
    names = ["truthfulqa", "truthfulqa-null"]
    order = {choice: -1.0 - place for place, choice in enumerate(TRUTHFULQA[0]["mc2_targets"])}
    likelihood = lambda before, choice: order[choice]  # noqa: E731
    plan = prepare(names, Decoding(), folder=str(folder))
    expected = (math.exp(-1) + math.exp(-2)) / (math.exp(-1) + math.exp(-2) + math.exp(-3))
    found = scores(
        plan, scripted(lambda before, tracing: "hm" + END, likelihood=likelihood), tmp_path / "a"
    )
    assert found == {name: pytest.approx(expected) for name in names}
    found = scores(
        plan, scripted(lambda before, tracing: "hm", likelihood=likelihood), tmp_path / "b"
    )
    assert found == {"truthfulqa": 0.0, "truthfulqa-null": pytest.approx(expected)}


def test_a_model_without_traces_is_asked_the_same(folder, tmp_path):
    plan = prepare(["gsm8k"], Decoding(), folder=str(folder))
    assert scores(plan, scripted(lambda before, tracing: "8, I think", thinks=False), tmp_path) == {
        "gsm8k": pytest.approx(1 / 3)
    }


def test_limit_takes_the_same_rows_for_everybody_and_more_holds_less(folder):
    def ids(limit: int) -> list[str]:
        return [
            row.id
            for row in prepare(["math"], Decoding(), folder=str(folder), limit=limit).rows["math"]
        ]

    everything = ids(0)
    assert len(everything) == len(set(everything)) == 20
    assert ids(99) == everything
    assert ids(7) == [row for row in everything if row in ids(7)]  # in their order
    assert set(ids(3)) < set(ids(7)) < set(ids(12))
    assert ids(7) != everything[:7]


def test_a_limit_is_of_the_benchmark_not_of_its_tasks(folder):
    assert len(prepare(["bbh"], Decoding(), folder=str(folder), limit=5).rows["bbh"]) == 5


def test_seeds_are_for_what_is_sampled(folder):
    plan = prepare(
        ["gsm8k", "humaneval", "truthfulqa", "truthfulqa-null"],
        Decoding(),
        folder=str(folder),
        seeds=3,
    )
    seeds = {name: sorted({row.question.seed for row in rows}) for name, rows in plan.rows.items()}
    assert seeds == {
        "gsm8k": [0],
        "humaneval": [0, 1, 2],
        "truthfulqa": [0, 1, 2],
        "truthfulqa-null": [0],
    }
    warm = prepare(
        ["gsm8k", "humaneval"], Decoding(temperature=0.6, seed=5), folder=str(folder), seeds=2
    )
    assert {row.question.seed for row in warm.rows["gsm8k"]} == {5, 6}
    assert warm.rows["gsm8k"][0].question.temperature == 0.6
    assert warm.rows["humaneval"][0].question.temperature == 0.8  # the task's own


def test_seeds_are_graded_each_by_its_own_replies(folder, tmp_path):
    plan = prepare(["humaneval"], Decoding(), folder=str(folder), seeds=2)
    replies = ReplyStore(tmp_path)
    for row in plan.rows["humaneval"]:
        answer = right_answer("humaneval", row.doc) if row.question.seed else "no"
        ((task, found),) = answer_all(
            scripted(lambda before, tracing, answer=answer: "z" + END if tracing else answer),
            [row.question],
        )
        replies.add(task, found)
    ((_, rows),) = plan.records(replies)
    assert [(row["seed"], row["score"]) for row in rows] == [(0, 0.0), (1, 1.0)]
    (score,) = benchmark_scores(rows)
    assert (score.score, score.seeds, score.rows) == (0.5, (0.0, 1.0), 1)


def test_mmlu_is_the_mean_over_subjects(folder, tmp_path):
    """Two rows of algebra and one of geography: the latter alone is right, 1/2 and not 1/3."""
    plan = prepare(["mmlu"], Decoding(), folder=str(folder))
    reasoner = scripted(
        lambda before, tracing: (
            "z" + END if tracing else f"the answer is ({'B' if '7 + 8' in before else 'C'})"
        )
    )
    assert scores(plan, reasoner, tmp_path) == {"mmlu": 0.5}


def test_the_suite_is_table_3s():
    assert resolve("paper", "") == [*NINE, "truthfulqa-null"]
    assert [BENCHMARKS[name].title for name in NINE] == [
        "BBH", "MMLU", "DROP", "PopQA", "TruthfulQA", "GSM8K", "MATH", "HumanEval", "IFEval"
    ]  # fmt: skip
    with pytest.raises(InputError, match="did you mean 'paper'"):
        resolve("papers", "")
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        prepare(["gsm8"], Decoding())
