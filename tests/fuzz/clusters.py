"""Run folders of engine=verl: tests/golden/verl with a file damaged, reshaped, gone or the local engine's.

`verl_runs` needs no verl. The others do: python tests/verl/ours.py tests.fuzz.long --only 'verl resumes'
"""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from nrt.analysis.comparison import compare, comparison_markdown
from nrt.analysis.report.figures import write_figures
from nrt.backends.verl.engine import VERL_FOLDER
from nrt.backends.verl.ray_cluster import choose_platform
from nrt.cli.chat import ChatSession, ChatSettings
from nrt.distributed import SINGLE_PROCESS
from nrt.run import load_run
from nrt.serving.export import export_run
from nrt.system.manifest import write_manifest
from nrt.trainer import train
from nrt.trainer.cluster_setup import prepare_cluster
from nrt.trainer.start import _prepare_resumed
from tests.fuzz import inputs
from tests.fuzz.folders import files_of, made_once, quiet, shown
from tests.fuzz.outcome import assert_unchanged, contents, outcome, verdict
from tests.golden.make import FOLDER, PAIRS, VERL
from tests.trainer.conftest import tiny_config, write_model

LOCAL = FOLDER / "0.1.0"
"""The same training by the local engine."""


def verl_runs(rng: Random, folder: Path) -> str:
    """A finished run, through report, figures, comparison, export, chat and a resume, which changes nothing where it is refused."""
    run = folder / "run"
    shutil.copytree(_finished(), run)
    last = run / "checkpoints" / "step-000002"
    if rng.random() < 0.1:
        shutil.rmtree(last)
        shutil.copytree(LOCAL / "checkpoints" / "step-000002", last)
    else:
        inputs.meddle(rng, rng.choice(files_of(run)), files_of(_finished(), LOCAL))
    before = contents(run)
    found = [
        *shown(run),
        *shown(run, LOCAL),
        outcome(
            lambda: comparison_markdown(
                compare({"a": {0: run}, "b": {0: LOCAL}}, "b", measure="logp")
            )
        ),
    ]
    found.append(outcome(lambda: export_run(load_run(run), folder / "out")))
    found.append(outcome(lambda: export_run(load_run(run), folder / "out-2", step=2)))
    if rng.random() < 0.2:
        found.append(
            outcome(
                lambda: ChatSession(str(run), ChatSettings(4, 4), quiet()).ask(
                    "what is one plus two ?"
                )
            )
        )
    if rng.random() < 0.02:
        found.append(outcome(lambda: write_figures([run], folder / "figures")))
    resumed = outcome(lambda: train(load_run(run).config.model_copy(update={"resume": str(run)})))
    assert resumed == "refused"  # verl is not installed; nor are model and pairs where they were
    assert_unchanged(run, before)
    return verdict(found)


@made_once
def _finished(folder: Path) -> Path:
    """With the model that the last checkpoint has."""
    shutil.copytree(VERL / "run", folder / "run")
    shutil.copytree(
        folder / "run" / "checkpoints" / "step-000002" / "model", folder / "run" / "model"
    )
    return folder / "run"


def verl_resumes(rng: Random, folder: Path) -> str:
    """All of a resume but for the cluster, with a file of the checkpoint damaged, under a manifest that fits or does not."""
    run = folder / "run"
    shutil.copytree(VERL / "run", run)
    os.chdir(_beside())
    last = run / "checkpoints" / "step-000002"
    how = rng.random()
    if how < 0.05:
        shutil.rmtree(last)
        shutil.copytree(LOCAL / "checkpoints" / "step-000002", last)
    else:
        file = rng.choice([last / "state.json"] * 4 + files_of(last))
        inputs.meddle(rng, file, files_of(VERL / "run", LOCAL))
    if rng.random() < 0.8 and not (last / "manifest.json").is_dir():
        write_manifest(last)
    before = contents(run)

    def checked() -> None:
        with _prepare_resumed(
            load_run(run).config.model_copy(update={"resume": str(run)}), str(run), SINGLE_PROCESS
        ).writer:
            pass

    found = outcome(checked)
    assert_unchanged(run, before)
    return found


@made_once
def _beside(folder: Path) -> Path:
    """The model and the pairs that the run was trained on, where its settings say."""
    write_model(folder / "base", width=8)
    shutil.copy(VERL / f"verl-{PAIRS}", folder / PAIRS)
    return folder


def verl_parts(rng: Random, folder: Path) -> str:
    """What a worker wrote of itself, damaged, another file's or of another version's keys, read by a real one on a real cluster. Whole
    again, it is taken."""
    engine, parts = _cluster()
    shutil.copytree(parts, folder / VERL_FOLDER)
    file = rng.choice(sorted((folder / VERL_FOLDER).glob("*.pt")))
    if rng.random() < 0.4:
        torch.save(_rekeyed(rng, torch.load(file, weights_only=False)), file)
    else:
        inputs.meddle(rng, file, files_of(parts))
    found = outcome(lambda: engine._load_checkpoint(engine.trainer, folder / VERL_FOLDER))
    if rng.random() < 0.05:
        engine._load_checkpoint(engine.trainer, parts)
    return found


def _rekeyed(rng: Random, state: Any) -> Any:
    """A state with a key at one place of it gone, renamed, or with another value."""
    if not isinstance(state, dict) or not state:
        return rng.choice((None, torch.zeros(3), inputs.value(rng)))
    key = rng.choice(list(state))
    how = rng.random()
    if how < 0.7:
        return {**state, key: _rekeyed(rng, state[key])}
    rest = {name: value for name, value in state.items() if name != key}
    return rest if how < 0.85 else {**rest, f"new_{key}": state[key]}


@cache
def _cluster() -> tuple[Any, Path]:
    """An engine that runs with one worker, and what it wrote."""
    os.chdir(_beside())
    config = tiny_config(
        "base",
        PAIRS,
        "unused",
        engine="verl",
        gpus_per_node=1,
        device="cpu",
        initial_reference=False,
    )
    choose_platform(config)
    engine: Any = prepare_cluster(config).learner.policy.engine
    running = ExitStack()
    atexit.register(running.close)
    folder = _beside() / "cluster"
    folder.mkdir()
    running.enter_context(engine.running(folder))
    engine.trainer.save(folder / VERL_FOLDER)
    return engine, folder / VERL_FOLDER
