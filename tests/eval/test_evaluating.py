"""`nrt eval` as a user runs it: files that it leaves, killed and run again, in two processes, without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nrt.cli.app import app
from nrt.cli.evaluate import remove_rows_of_other_weights
from nrt.errors import InputError
from tests.eval.benchmarks import write_benchmarks
from tests.eval.reasoners import save_tiny_model

BENCHMARKS = "gsm8k,mmlu,math,truthfulqa,truthfulqa-null,humaneval"
ARGUMENTS = [
    "--data",
    "data",
    "--benchmarks",
    BENCHMARKS,
    "--max-trace-tokens",
    "24",
    "--max-answer-tokens",
    "48",
    "--batch",
    "8",
    "--limit",
    "6",
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and two models: one thinks."""
    folder = tmp_path_factory.mktemp("work")
    write_benchmarks(folder / "data")
    save_tiny_model(folder / "thinker", thinks=True, context=800)
    save_tiny_model(folder / "plain", thinks=False, context=800, seed=1)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nrt", "eval", *arguments]


def run(folder: Path, *arguments: str, status: int = 0, **environment: str) -> str:
    env = (
        os.environ
        | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        | environment
    )
    done = subprocess.run(
        command(*arguments), cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def rows(place: Path) -> dict[str, list[dict[str, Any]]]:
    """Without what the clock says."""
    found = {}
    for file in sorted((place / "rows").glob("*.jsonl")):
        found[file.stem] = [
            json.loads(line) | {"seconds": 0} for line in file.read_text("utf-8").splitlines()
        ]
    return found


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted evaluation of both models."""
    text = run(folder, "thinker", "plain", *ARGUMENTS)
    return folder / "evals", text


def test_what_it_leaves(whole):
    place, text = whole
    assert "less `thinker`" in text
    assert text.splitlines()[-1] == "next: nrt chat thinker", "neither is a run"
    document = json.loads((place / "thinker" / "eval.json").read_text())
    assert [score["benchmark"] for score in document["scores"]] == BENCHMARKS.split(",")
    assert document["settings"]["thinks"] is True
    assert (place / "thinker" / "replies" / document["fingerprint"]).is_dir()
    assert document["mean_of_nine"] is None
    assert "lm-eval" in document["environment"]["packages"]
    by_name = {score["benchmark"]: score for score in document["scores"]}
    assert by_name["math"]["rows"] == 6
    assert by_name["gsm8k"]["unfinished"] > 0
    assert by_name["truthfulqa"]["cut"] == 0
    page = (place / "thinker" / "eval.md").read_text()
    assert page.startswith("# thinker")
    assert "TruthfulQA, null trace" in page
    assert "truthfulqa-null" not in rows(place / "plain")  # it has no trace to leave out
    (row, *_) = rows(place / "thinker")["humaneval"]
    assert len(row["said"]) == 20
    assert row["also"] == {"pass@1": 0.0}
    assert row["question"].startswith("Complete the following function:")
    assert rows(place / "thinker")["truthfulqa"][0]["target"] == "Nothing.\nYou are full."


def test_killed_and_run_again_it_asks_nothing_twice(folder, whole):
    arguments = ["thinker", *ARGUMENTS, "-o", "killed"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and sum(replies(folder / "killed").values()) < 8:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = replies(folder / "killed")
    assert not (folder / "killed" / "eval.json").exists()
    assert sum(before.values()) >= 8
    run(folder, *arguments)
    after = replies(folder / "killed")
    assert sum(after.values()) > sum(before.values())
    assert set(after.values()) == {1}  # each question once
    assert rows(folder / "killed") == rows(whole[0] / "thinker")
    run(folder, *arguments)  # nothing is left to do
    assert replies(folder / "killed") == after


def replies(place: Path) -> dict[str, int]:
    """Count the replies to each question, in complete lines only."""
    counts: dict[str, int] = {}
    for file in place.glob("replies/*/*.jsonl"):
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                key = json.loads(line)["key"]
                counts[key] = counts.get(key, 0) + 1
    return counts


def test_two_processes_say_what_one_says(folder, whole):
    run(folder, "thinker", *ARGUMENTS, "-o", "two", "--processes", "2")
    assert (
        len({file.name.split(".")[-2] for file in (folder / "two").glob("replies/*/*.jsonl")}) == 2
    )
    one, two = rows(whole[0] / "thinker"), rows(folder / "two")
    for name in one:
        for a, b in zip(one[name], two[name], strict=True):
            assert [said["answer"] for said in a["said"]] == [said["answer"] for said in b["said"]]
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_another_model_in_the_same_place_is_asked_anew(folder):
    save_tiny_model(folder / "changing", thinks=False, context=800)
    arguments = ["changing", "--data", "data", "--benchmarks", "gsm8k", "--limit", "2"]
    run(folder, *arguments)
    first = rows(folder / "evals" / "changing")
    save_tiny_model(folder / "changing", thinks=False, context=800, seed=7)
    run(folder, *arguments)
    assert rows(folder / "evals" / "changing") != first


def test_rows_of_other_weights_are_removed(tmp_path):
    """A report reads all rows of the folder, and would show the old model's beside the new."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "popqa.jsonl").write_text("{}\n")
    remove_rows_of_other_weights(tmp_path, "new")
    assert (tmp_path / "rows").is_dir(), "nothing says whose they are"
    (tmp_path / "eval.json").write_text(json.dumps({"fingerprint": "new"}))
    remove_rows_of_other_weights(tmp_path, "new")
    assert (tmp_path / "rows").is_dir()
    remove_rows_of_other_weights(tmp_path, "newer")
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "--benchmarks", "gsm8k"], "gsm8k needs the Hugging Face dataset openai/gsm8k"),
        (["plain", "--benchmarks", "gsm9k", "--data", "data"], "did you mean 'gsm8k'"),
        (["plain", "--data", "nowhere"], "nowhere has no file of bbh"),
        (["nothing", "--data", "data"], "nothing"),
        (["plain", "thinker", "-o", "x", "--data", "data"], "--output is the folder of one model"),
    ],
)
def test_what_is_missing_is_said_before_it_starts(folder, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as said:
        app(["eval", *arguments], standalone_mode=False)
    assert message in str(said.value)
