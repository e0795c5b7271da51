"""The real model and one short run of it, which the tests of this folder share."""

import json
import os
from pathlib import Path

import pytest

import nrt
from nrt.config import build_config
from nrt.lab.arithmetic import FAMILIES, draw_problems, messages, worked_examples


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder that `python -m tests.real.model` made."""
    folder = os.environ.get("NRT_REAL_MODEL", "")
    if not (Path(folder) / "config.json").is_file():
        pytest.fail(
            "set NRT_REAL_MODEL to the folder that `python -m tests.real.model` prints; `make test-real` does"
        )
    return folder


@pytest.fixture(scope="session")
def sums(tmp_path_factory) -> Path:
    """Twenty-four additions with two worked examples before each."""
    examples = worked_examples([FAMILIES["count3"], FAMILIES["add2"]])
    problems = draw_problems(FAMILIES["add2"], test=False, n=24, seed=0)
    rows = [{"messages": messages(problem, examples)} for problem in problems]
    file = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def make_config(smollm2, sums):
    """make_config(run, **settings): three steps of 2 prompts × 4 traces."""

    def make(run, **settings):
        values = {
            "model": smollm2, "run": str(run), "steps": 3, "batch": 2, "traces": 4, "max_trace_tokens": 16, "max_answer_tokens": 12,
            "max_prompt_tokens": 256, "eval_every": 0, "save_every": 0, "threads": 2, "device": "cpu", "profile": "paper",
            "data": {"train": str(sums), "valid": str(sums)}, "heldout": {"rows": 2, "checker": "last-number"},
            "optimizer": {"lr": 1e-4, "warmup": 2},
        }  # fmt: skip
        return build_config(values, settings)

    return make


@pytest.fixture(scope="session")
def run(make_config, tmp_path_factory):
    """A run of three steps."""
    return nrt.train(make_config(tmp_path_factory.mktemp("runs") / "first"))
