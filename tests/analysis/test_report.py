"""The report's record and its page, from run folders that the tests write."""

import io
import json
import re
import sys
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import yaml
from rich.console import Console

from nrt.analysis.report.curves import MAX_POINTS, read_curves
from nrt.analysis.report.data import SCHEME_OF_METHOD, build_report
from nrt.analysis.report.groups import TraceIndex, parse_group, read_groups
from nrt.analysis.report.page import embedded, render_page, write_page
from nrt.analysis.report.questions import read_questions
from nrt.analysis.report.selection import within_budget
from nrt.analysis.report.text import print_report
from nrt.config import Config
from nrt.errors import InputError
from nrt.objective import METHODS, REWARDS
from nrt.run import Run, RunWriter, load_run
from tests.runs import HOSTILE, TOKENS, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def part(folder):
    (part,) = build_report([folder]).runs
    return part


def test_before_and_after_by_hand(part):
    """12 questions in two families; before training, questions 0, 1 and 2 are right.

    That is 2 of 6 in family0, and 1 of 6 in family1.
    """
    accuracy, logp = part.measured
    assert (accuracy.measure, logp.measure) == ("correct", "logp")
    first, second, mean = accuracy.scores
    assert (first.family, first.questions, first.before.mean) == (
        "family0",
        6,
        pytest.approx(2 / 6),
    )
    assert (second.before.mean, second.after.mean, second.change.mean) == pytest.approx(
        (1 / 6, 1.0, 5 / 6)
    )
    assert (mean.family, mean.questions, mean.before.mean, mean.null.mean) == (
        "mean of families",
        12,
        pytest.approx(0.25),
        0.0,
    )
    assert mean.before.low <= 0.25 <= mean.before.high < mean.after.low < 1.0


def test_facts_leave_folders_out(part):
    facts = dict(part.facts)
    assert facts["held out"] == "valid.jsonl, at most 200 rows"
    assert facts["per step"] == "1 prompts × 5 traces"
    assert facts["time in training steps"] == "3.0 s"
    assert part.status == "finished, 6 of 6 steps"
    assert part.missing == []
    assert part.warnings[0]["kind"] == "dropped-prompts"


def test_facts_name_each_source_of_a_mixture(tmp_path):
    path = write_run(tmp_path / "mixed")
    values = yaml.safe_load((path / "config.yaml").read_text())
    values["data"]["train"] = [
        {"path": "/home/me/a.jsonl", "weight": 3.0},
        {"path": "org/name", "weight": 0.5},
    ]
    (path / "config.yaml").write_text(yaml.safe_dump(values))
    (part,) = build_report([path]).runs
    assert dict(part.facts)["trained on"] == "a.jsonl × 3, org/name × 0.5"


def test_words_come_from_held_out_rows_or_else_from_groups(part, tmp_path):
    assert part.vocabulary is not None
    assert part.vocabulary_of == "the held-out evaluation after step 6"
    assert part.vocabulary.trace_words == 12 * 5  # let us see step N
    run = write_run(tmp_path / "run")
    for file in (run / "heldout").iterdir():
        file.unlink()
    (other,) = build_report([run]).runs
    assert other.vocabulary is not None
    assert (other.vocabulary_of, other.vocabulary.trace_words) == (
        "the training groups on this page",
        6 * 5 * 4,
    )


def test_groups_keep_every_digit_of_the_log_probabilities(folder, part):
    record, group = load_run(folder).traces()[0], part.groups[0]
    assert [value / 1e5 for value in group.base] == record["base_logp"]
    assert [value / 1e5 for value in group.traces[2].logp] == record["traces"][2]["answer_logp"]
    assert group.traces[0].entropy == [100, 2500, 0, 1000]
    assert group.traces[0].reward == pytest.approx(record["traces"][0]["reward"], rel=1e-5)
    assert (len(part.groups), part.groups_in_folder) == (6, 6)


def test_schemes_are_those_of_the_methods():
    assert all(
        METHODS[method].reward is REWARDS[scheme] for method, scheme in SCHEME_OF_METHOD.items()
    )
    others = set(METHODS) - set(SCHEME_OF_METHOD)
    assert others == {
        "dro",
        "nrt-mixed",
        "nrt-learned",
        "rlvr",
        "sft",
    }  # their rewards are no single scheme


def test_at_most_300_groups_with_the_first_and_the_last(tmp_path):
    with RunWriter.create(tmp_path / "long", Config()) as writer:
        for step in range(1, 1001):
            writer.trace(
                {
                    "step": step,
                    "prompt": "p",
                    "base_logp": [-1.0],
                    "traces": [{"text": "t", "answer_logp": [-0.5]}],
                }
            )
    groups, in_folder = read_groups(load_run(tmp_path / "long"))
    steps = [group.step for group in groups]
    assert (in_folder, len(steps), steps[0], steps[-1]) == (1000, 300, 1, 1000)
    assert {b - a for a, b in pairwise(steps)} == {3, 4}
    assert len(read_groups(load_run(tmp_path / "long"), share=10)[0]) == 30


def test_a_rebuilt_report_equals_a_new_one(tmp_path):
    """Also with whole and half lines added, after a resume, and without traces.jsonl."""
    run, indexes = write_run(tmp_path / "run"), defaultdict(TraceIndex)
    file = run / "traces.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)

    def rebuilt_steps():
        rebuilt, new = build_report([run], indexes), build_report([run])
        assert replace(rebuilt, made="") == replace(new, made="")
        return [group.step for group in rebuilt.runs[0].groups]

    file.write_bytes(b"")
    assert rebuilt_steps() == []
    for count in (1, 1, 4):
        file.write_bytes(b"".join(lines[:count]))
        assert rebuilt_steps() == list(range(1, count + 1))
    file.write_bytes(b"".join(lines[:5])[:-20])
    assert rebuilt_steps() == [1, 2, 3, 4]
    file.write_bytes(b"".join(lines))
    assert rebuilt_steps() == [1, 2, 3, 4, 5, 6]
    with RunWriter.reopen(run, step=2):
        assert rebuilt_steps() == [1, 2]
    file.unlink()
    assert rebuilt_steps() == []


def test_an_index_reads_only_new_traces(folder):
    """The second read of a file that did not grow starts at its last line."""
    starts = []

    class Watched(Run):
        def trace_lines(self, start=0):
            starts.append(start)
            return super().trace_lines(start)

    index, run = TraceIndex(), Watched(folder)
    assert index.lines(run) == run.trace_lines()
    index.lines(run)
    assert starts[-1] == index.lines(run)[-1][1] > 0


def test_items_over_the_budget_are_thinned_out():
    items = [[i] * 100 for i in range(50)]
    kept = within_budget(items, 2000)
    assert kept[0] == items[0]
    assert kept[-1] == items[-1]
    assert 2 <= len(kept) <= 10
    assert within_budget(items, 1) == [items[0], items[-1]]


def test_long_curves_become_means_of_stretches():
    curve = read_curves(
        [{"step": i, "a": float(i), "b": None} for i in range(1, 2 * MAX_POINTS + 1)]
    )["a"]
    assert len(curve.steps) == MAX_POINTS
    assert (curve.steps[0], curve.values[0]) == (1.5, 1.5)
    assert "b" not in read_curves([{"step": 1, "b": None}])
    assert read_curves([{"step": 1, "answer/logp": -0.5, "answer/logp_null": -2.0}])[
        "gain"
    ].values == [1.5]


def test_values_that_are_not_finite():
    record = {
        "step": 1,
        "prompt": "p",
        "base_logp": [None],
        "base_reward": None,
        "traces": [{"text": "", "answer_logp": [None], "reward": None}],
    }
    group = parse_group(record)
    assert group.base == [None]
    assert group.traces[0].reward is None
    assert group.tokens == ["token 1"]  # an older version did not write them


def test_several_runs_are_compared(tmp_path):
    """sft and two seeds of a method answer the same questions; replies are by run index."""
    runs = [
        write_run(tmp_path / "sft", method="sft"),
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1),
    ]
    report = build_report(runs)
    assert report.compared is not None
    assert report.confidence is not None
    assert report.compared.baseline == "sft"
    assert list(report.confidence.bins) == ["nrt-gm"]
    assert {row.variant: sorted(row.by_seed) for row in report.compared.rows} == {
        "sft": [0],
        "nrt-gm": [0, 1],
    }
    assert (len(report.questions), report.questions_in_folder) == (12, 12)
    assert sorted(report.questions[0].replies) == [0, 1, 2]
    before, after = report.questions[5].replies[1]
    assert before is not None
    assert after is not None
    assert (before.correct, after.correct, after.trace) == (False, True, "let us see step 5 ")
    assert (after.tokens, after.token_logp_null) == (list(TOKENS), [-150000] * len(TOKENS))
    assert any("samples none" in note for note in report.runs[0].missing)
    # Two runs with the same method and seed are variants under their own names.
    twins = build_report([runs[1], write_run(tmp_path / "again")])
    assert [part.variant for part in twins.runs] == ["a", "again"]


def test_variants_of_a_study_that_share_a_method_keep_their_seeds(tmp_path):
    names = ("warm-seed0", "warm-seed1", "cold-seed0", "cold-seed1")
    runs = [write_run(tmp_path / name, seed=int(name[-1])) for name in names]
    report = build_report(runs)
    assert report.compared is not None
    assert {row.variant: sorted(row.by_seed) for row in report.compared.rows} == {
        "warm": [0, 1],
        "cold": [0, 1],
    }


def test_runs_with_different_questions_are_not_compared(tmp_path):
    one = write_run(tmp_path / "one")
    with RunWriter.create(tmp_path / "other", Config(method="rlpr")) as writer:
        writer.heldout(
            3,
            [
                {
                    "id": "x",
                    "source": "family0",
                    "question": "?",
                    "reference": "!",
                    "logp": -1.0,
                    "correct": True,
                }
            ],
        )
    report = build_report([one, tmp_path / "other"])
    assert report.compared is None
    assert "different questions" in report.compared_missing


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (
            lambda run: [file.unlink() for file in (run / "heldout").iterdir()],
            "No held-out evaluation (data.valid",
        ),
        (
            lambda run: (run / "heldout" / "step-000000.jsonl").unlink(),
            "No held-out evaluation at step 0",
        ),
        (
            lambda run: (run / "heldout" / "step-000006.jsonl").unlink(),
            "No held-out evaluation after step 0",
        ),
        (lambda run: (run / "traces.jsonl").unlink(), "No sampled traces"),
        (lambda run: (run / "metrics.jsonl").unlink(), "No metrics"),
        (lambda run: (run / "environment.json").unlink(), "No environment.json"),
        (
            lambda run: (run / "model").rmdir(),
            "No trained model in the folder: the run is stopped, 6 of 6 steps",
        ),
        (
            lambda run: (run / "traces.jsonl").write_bytes(
                (run / "traces.jsonl").read_bytes()[:-300]
            ),
            "",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_bytes(
                (run / "metrics.jsonl").read_bytes()[:-30]
            ),
            "",
        ),
        (lambda run: set_config(run, schema_version=0), "schema version 0"),
        (lambda run: set_config(run, gone_setting=3), "gone_setting"),
        (lambda run: (run / "config.yaml").write_text("a: [", encoding="utf-8"), "not valid YAML"),
        (lambda run: drop_field(run, "token_entropy"), "token_entropy"),
        (lambda run: drop_field(run, "answer_tokens"), "not shaded token by token"),
        (lambda run: drop_field(run, "correct"), "no accuracy"),
    ],
)
def test_an_incomplete_folder_gives_a_page_that_names_what_is_missing(tmp_path, damage, note):
    run = write_run(tmp_path / "run")
    damage(run)
    report = build_report([run])
    assert any(note in missing for missing in report.runs[0].missing) or not note
    assert "<section" in render_page(report)
    assert printed(report)


def printed(report):
    out = io.StringIO()
    print_report(report, Console(file=out, width=160))
    return out.getvalue()


def set_config(run, **values):
    file = run / "config.yaml"
    file.write_text(
        yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | values), encoding="utf-8"
    )


def drop_field(run, field):
    for file in (run / "heldout").iterdir():
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for record in records:
            del record[field]
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_hostile_text_stays_inside_the_data(tmp_path):
    """It cannot end the script element, and reads back unchanged."""
    report = build_report([write_run(tmp_path / "<b>run", extra=HOSTILE + "x" * 100_000)])
    data = embedded(report)
    assert not re.search("[<>&\u2028\u2029\x00]", data)
    value = json.loads(data)
    assert value["runs"][0]["name"] == "<b>run"
    assert value["runs"][0]["groups"][0]["prompt"] == "question 1 " + HOSTILE + "x" * 100_000
    file = tmp_path / "page.html"
    write_page(report, file)
    text = file.read_text(encoding="utf-8")
    assert "window.hacked" not in text.replace(
        data.encode("utf-8", "backslashreplace").decode(), ""
    )
    parser = TagCounter()
    parser.feed(text)
    assert parser.tags["script"] == 11
    assert "img" not in parser.tags
    assert not {"http:", "https:"} & parser.loads
    assert len(TOKENS) == len(value["runs"][0]["groups"][0]["tokens"])


class TagCounter(HTMLParser):
    """Counts tags, and collects the URL schemes of what a page would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads = {}, set()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads |= {
            str(value).split("//")[0] for name, value in attrs if name in ("src", "href")
        }


def test_a_page_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(InputError, match="choose another file with -o"):
        write_page(build_report([folder]), tmp_path / "no" / "such" / "page.html")


def test_without_plotly_the_error_names_the_extra(folder, monkeypatch):
    report = build_report([folder])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[report\]'"):
        render_page(report)


def test_a_run_given_twice_and_no_run(folder, tmp_path):
    with pytest.raises(InputError, match="given twice"):
        build_report([folder, folder / "." / "heldout" / ".."])
    with pytest.raises(InputError, match="is not a run"):
        build_report([tmp_path])


def test_the_terminal_summary(folder):
    text = printed(build_report([folder]))
    assert "0.250 [" in text
    assert "loss" in text
    assert "▁" in text
    assert "judge: quality" in text
    assert "warning at step 0: 2 rows are too long" in text


def test_questions_of_different_files_are_kept_apart(tmp_path):
    """An id with a different question is a different question."""
    for name, text in (("a", "one"), ("b", "two")):
        with RunWriter.create(tmp_path / name, Config()) as writer:
            writer.heldout(
                3,
                [{"id": "valid:1", "source": "", "question": text, "reference": "r", "logp": -1.0}],
            )
    report = build_report([tmp_path / "a", tmp_path / "b"])
    assert [(question.question, sorted(question.replies)) for question in report.questions] == [
        ("one", [0]),
        ("two", [1]),
    ]
    assert read_questions([]) == ([], 0)
