"""Bad input of every kind: it works, or it is refused in one line. `python -m tests.fuzz.long` makes hundreds of thousands of it.

What the long runs and these found stands below, each by itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.config import RowsConfig, build_config, load_config, parse_overrides
from nrt.data.columns import RowReader
from nrt.errors import InputError
from nrt.models import load_model
from nrt.run import RunWriter, load_run
from tests.fuzz.hostile import bombs
from tests.fuzz.inputs import LAUGHS
from tests.fuzz.targets import CHEAP, DEARER, Target
from tests.runs import write_run
from tests.trainer.conftest import write_model

EXAMPLES = dict.fromkeys(CHEAP, 300) | {
    "recipe": 150,
    "data files": 60,
    "run folders": 30,
    "checkpoints": 15,
    "forgery": 300,
}
EXAMPLES |= {
    "links": 20,
    "replies": 100,
    "eval folders": 8,
    "judge folders": 20,
    "studies": 8,
    "verl runs": 8,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_works_or_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    target: Target = {**CHEAP, **DEARER}[name]
    folder = tmp_path / "input"

    @settings(max_examples=EXAMPLES[name])
    @given(st.randoms(use_true_random=False))
    def check(rng: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        assert target(rng, folder) in ("taken", "refused", "failed")

    check()


@pytest.mark.parametrize("seed", range(8))
def test_small_files_that_unpack_to_large_ones(seed: int, tmp_path: Path) -> None:
    """Not by hypothesis, which would unpack a hundred of them to show a smaller one."""
    assert bombs(Random(seed), tmp_path) in ("taken", "refused")


# --- what was found ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xb4", "is not UTF-8"),
        (b"steps: " + b"[" * 5000, "is not valid YAML"),
        (b"run: 2026-13-45\n", "is not valid YAML"),
        (b"over: recipe.yaml\n", "builds on itself"),
        (f"{LAUGHS}verl: *a11\n".encode(), "holds more than 10,000 values"),
        (b"verl: &x {x: *x}\n", "holds more than 10,000 values"),
        (b"objective: {trace_coef: .nan}\n", "finite"),
        (b"optimizer: {lr: .inf}\n", "finite"),
    ],
)
def test_recipes(text: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(text)
    with pytest.raises(InputError, match=said) as found:
        load_config("recipe.yaml")
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "2026-13-45", "&a [*a]"])
def test_settings_that_are_no_yaml_are_text(value: str) -> None:
    assert build_config(parse_overrides([f"model={value}"])).model == value
    with pytest.raises(InputError) as found:
        build_config(parse_overrides([f"steps={value}"]))
    assert len(str(found.value)) < 1000


def test_a_role_that_is_a_list() -> None:
    turns = [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="has the role"):
        RowReader("x", RowsConfig())(1, {"messages": turns})


@pytest.mark.parametrize("line", ["[" * 10**5, "3", "[]", '{"step": "x"}', '{"step": 1.5}', "nul"])
def test_lines_of_a_run(line: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", groups=1)
    (run / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1 is not"):
        load_run(run).metrics()


def test_lines_without_a_step_end_a_resume_in_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", groups=1)
    (run / "metrics.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(InputError, match="holds what nrt does not write there"):
        RunWriter.reopen(run, 1)
    assert not (run / "lock").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"{}", b'{"a": [' * 5000])
def test_files_of_a_model(name: str, data: bytes, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / name).write_bytes(data)
    with pytest.raises(InputError, match="model "):
        load_model(str(model), dtype=torch.float32, device="cpu")


def test_a_size_that_is_a_text(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    values = json.loads((model / "config.json").read_text()) | {"hidden_size": "wide"}
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="model "):
        load_model(str(model), dtype=torch.float32, device="cpu")
