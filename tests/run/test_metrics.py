"""Table of metrics, and the page that it generates."""

import subprocess
import sys
from pathlib import Path

import pytest

from nrt.errors import InputError
from nrt.run.metrics import METRICS, describe, markdown

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m nrt.run.metrics > docs/metrics.md"


def test_the_module_prints_the_page():
    printed = subprocess.run(
        [sys.executable, "-m", "nrt.run.metrics"], cwd=ROOT / "src", capture_output=True, check=True
    ).stdout
    assert printed.decode() == markdown()


def test_every_metric_has_a_row_and_a_meaning():
    text = markdown()
    for name, metric in METRICS.items():
        unit = f" ({metric.unit})" if metric.unit else ""
        assert text.count(f"- `{name}`{unit}: {metric.meaning}\n") == 1
        assert metric.meaning


def test_names_of_one_group_are_adjacent():
    assert markdown().count("\n## ") == len(
        {"the miniature" if "<family>" in name else name.split("/")[0] for name in METRICS}
    )


@pytest.mark.parametrize("name", list(METRICS))
def test_describe_finds_each_name(name):
    assert describe(name) is METRICS[name]


def test_describe_finds_sources_and_families():
    assert (
        describe("heldout/accuracy/gsm8k").meaning
        == METRICS["heldout/accuracy"].meaning + "; of source gsm8k"
    )
    assert (
        describe("heldout/accuracy_null/a/b").meaning
        == METRICS["heldout/accuracy_null"].meaning + "; of source a/b"
    )
    assert describe("worked/sum").meaning == METRICS["worked/<family>"].meaning + "; of family sum"
    assert describe("p_key_given_worked/bot").unit == "probability"
    assert (
        describe("weights/0.4").meaning
        == METRICS["weights/<surprise>"].meaning + "; of surprise 0.4"
    )


@pytest.mark.parametrize(
    "name", ["heldout/acuracy", "heldout", "worked/", "worked", "heldout/accuracy/", ""]
)
def test_describe_refuses_other_names(name):
    with pytest.raises(InputError, match="unknown metric"):
        describe(name)
