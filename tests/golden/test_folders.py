"""Run folders of every release since 0.1.0, as `python -m tests.golden.make` left them: this version reads them, and goes on with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nrt.analysis.comparison import compare
from nrt.analysis.report.data import build_report
from nrt.analysis.report.page import embedded
from nrt.errors import InputError
from nrt.run import Run, load_run
from nrt.system.manifest import find_damage, write_manifest
from nrt.trainer import train
from tests.golden.make import FOLDER, PAIRS


@dataclass(frozen=True)
class Numbers:
    """What a folder says."""

    gain: float  # reward/gain of step 3
    logp: float  # answer/logp of step 3
    heldout: dict[str, float]  # mean log-probability after step 3, by source


EXPECTED = {"0.1.0": Numbers(0.000724, -2.82529, {"kind-0": -2.99548, "kind-1": -2.88026})}
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def version_of(run: Run) -> str:
    return run.environment[0]["packages"]["native-reasoning"]


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, with the pairs that it was trained on beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / request.param, tmp_path / "run")
    shutil.copy(FOLDER / f"{request.param}-{PAIRS}", tmp_path / PAIRS)
    return tmp_path / "run"


def test_every_file_is_read(golden: Path) -> None:
    run = load_run(golden)
    assert (run.config.method, run.config.steps, run.config.traces, run.config.optimizer.lr) == (
        "nrt-ws-neg-log-p",
        3,
        3,
        1e-2,
    )
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3]
    assert run.metrics()[3]["reward/gain"] == pytest.approx(
        EXPECTED[version_of(run)].gain, rel=1e-2
    )
    assert [(record["step"], len(record["traces"])) for record in run.traces()] == [
        (step, 3) for step in (1, 1, 2, 2, 3, 3)
    ]
    assert run.heldout_steps() == [0, 2, 3]
    assert [len(run.heldout(step)) for step in (0, 2, 3)] == [6, 6, 6]
    assert run.environment[0]["packages"]["native-reasoning"]
    assert [path.name for path in run.checkpoints()] == ["step-000002"]
    assert find_damage(run.checkpoints()[0]) is None


def test_it_is_reported_and_compared(golden: Path) -> None:
    (part,) = build_report([golden]).runs
    assert (part.method, part.status, part.evaluations) == (
        "nrt-ws-neg-log-p",
        "stopped, 3 of 3 steps",
        [0, 2, 3],
    )
    assert (part.groups_in_folder, len(part.groups[0].traces), part.missing[0][:16]) == (
        6,
        3,
        "No trained model",
    )
    assert len(json.loads(embedded(build_report([golden])))["runs"][0]["groups"]) == 6
    rows = compare({"golden": {0: golden}}, "golden", measure="logp").rows
    means = {row.family: row.by_seed[0] for row in rows if row.family != "mean"}
    assert means == pytest.approx(EXPECTED[version_of(load_run(golden))].heldout, abs=1e-4)


def test_it_is_gone_on_with(golden: Path) -> None:
    """From the checkpoint after step 2. The sampled traces are those of then where the processor rounds as that one did."""
    before = load_run(golden)
    trained = train(before.config.model_copy(update={"resume": "./run"}))
    assert [record["step"] for record in trained.metrics()] == [0, 1, 2, 3]
    assert trained.metrics()[3]["answer/logp"] == pytest.approx(
        EXPECTED[version_of(before)].logp, abs=0.05
    )
    weights = load_file(trained.model_dir / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_newer_version_is_refused_with_the_mend(golden: Path) -> None:
    file = golden / "config.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | {"schema_version": values["schema_version"] + 1}))
    with pytest.raises(InputError, match="install the nrt that wrote it"):
        load_run(golden).config  # noqa: B018
    with pytest.raises(InputError, match="install the nrt that wrote it"):
        train(Run(FOLDER / VERSIONS[-1]).config.model_copy(update={"resume": "./run"}))
    (part,) = build_report([golden]).runs  # what can be shown is shown
    assert "install the nrt that wrote it" in part.missing[0]
    assert not (golden / "lock").exists()


def test_a_newer_setting_is_refused_by_its_name(golden: Path) -> None:
    with (golden / "config.yaml").open("a") as file:
        file.write("telepathy: true\n")
    with pytest.raises(InputError, match="unknown setting 'telepathy'"):
        load_run(golden).config  # noqa: B018


def test_a_newer_checkpoint_is_refused(golden: Path) -> None:
    """Whose state.json has other keys, under hashes that fit."""
    checkpoint = golden / "checkpoints" / "step-000002"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(
        json.dumps({f"new_{key}": value for key, value in state.items()})
    )
    write_manifest(checkpoint)
    with pytest.raises(
        InputError, match=r"step-000002 holds what nrt does not write there \(KeyError"
    ):
        train(load_run(golden).config.model_copy(update={"resume": "./run"}))
    assert not (golden / "lock").exists()
