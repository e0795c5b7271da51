"""Uploads through huggingface_hub to a hub on this machine: what arrives there is what the run folder has."""

import time

import pytest
from huggingface_hub import ModelCard

from nrt.errors import InputError
from nrt.run import Run, load_run
from nrt.trainer import train
from tests.serving.hub_server import HubServer
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def arguments(model_dir, pairs_file, tmp_path):  # noqa: F811
    """Arguments of `nrt train` for a run of four steps with two checkpoints."""
    return [
        "train", f"model={model_dir}", f"data.train={pairs_file}", f"data.valid={pairs_file}", "steps=4", "batch=4",
        "traces=2", "max_prompt_tokens=16", "max_trace_tokens=5", "max_answer_tokens=8", "save_every=2", "eval_every=2",
        "heldout.rows=6", f"run={tmp_path / 'run'}", "threads=1", "hub.repo=me/sums",
    ]  # fmt: skip


def test_checkpoints_and_model_are_uploaded(hub, arguments, tmp_path):
    process = hub.nrt(*arguments)
    assert process.returncode == 0, process.stderr
    assert hub.repositories == {"me/sums": True}
    assert [message for message, _ in hub.commits] == ["Step 2, by nrt", "Step 4, by nrt"]
    assert hub.tags == {"step-000002": 1, "step-000004": 2}
    run = load_run(tmp_path / "run")
    folders = (run.path / "checkpoints" / "step-000002" / "model", run.model_dir)
    for (_, uploaded), folder in zip(hub.commits, folders, strict=True):
        for file in folder.iterdir():
            assert uploaded[file.name] == file.read_bytes(), file.name
        assert set(uploaded) == {file.name for file in folder.iterdir()} | {
            "README.md",
            "vllm_reasoning.py",
        }
    cards = [ModelCard(files["README.md"].decode()) for _, files in hub.commits]
    assert "| 2, of 4 prompts with 2 traces each |" in cards[0].text
    assert "step 0 (6 rows) | step 4 (6 rows) | difference" in cards[1].text
    assert "# sums\n" in cards[1].text
    assert "vllm serve me/sums " in cards[1].text
    assert not (run.path / "upload").exists()
    assert all(record["kind"] != "hub" for record in run.warnings())


def test_a_checkpoint_is_left_out_while_an_upload_goes_on(hub, arguments, tmp_path):
    """The hub takes no commit before the run has left one out; the last model waits."""
    warnings = tmp_path / "run" / "warnings.jsonl"

    def wait():
        while not (warnings.exists() and "the model of step 4 is left out" in warnings.read_text()):
            time.sleep(0.05)

    hub.before_commit = wait
    process = hub.nrt(*arguments, "steps=6", "eval_every=0")
    assert process.returncode == 0, process.stderr
    assert [message for message, _ in hub.commits] == ["Step 2, by nrt", "Step 6, by nrt"]


def test_a_failed_upload_does_not_end_the_run(hub, arguments, tmp_path):
    hub.refuse_after = 1
    process = hub.nrt(*arguments)
    assert process.returncode == 0, process.stderr
    run = Run(tmp_path / "run")
    (warning,) = [record for record in run.warnings() if record["kind"] == "hub"]
    assert "the model was not uploaded to me/sums" in warning["message"]
    assert run.model_dir.is_dir()
    assert not (run.path / "upload").exists()


def test_a_hub_that_cannot_be_reached_is_known_before_the_first_step(arguments, tmp_path):
    with HubServer() as closed:
        pass
    process = closed.nrt(*arguments)
    assert process.returncode == 2
    assert "hub.repo=me/sums: the repository me/sums cannot be created" in process.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_wrong_name_is_refused(make_config):  # noqa: F811
    with pytest.raises(InputError, match=r"hub\.repo=sums: give USER/NAME"):
        train(make_config(**{"hub.repo": "sums"}))


def test_the_end_alone_and_an_export(hub, arguments, tmp_path):
    process = hub.nrt(*arguments, "hub.when=end", "hub.private=false")
    assert process.returncode == 0, process.stderr
    assert [message for message, _ in hub.commits] == ["Step 4, by nrt"]
    out = tmp_path / "out"
    process = hub.nrt("export", str(tmp_path / "run"), str(out), "--push", "me/mine")
    assert process.returncode == 0, process.stderr
    assert f"{hub.address}/me/mine" in process.stdout
    assert hub.repositories == {"me/sums": False, "me/mine": True}
    assert hub.commits[1][1] == {file.name: file.read_bytes() for file in out.iterdir()}
