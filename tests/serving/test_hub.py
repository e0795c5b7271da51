"""Uploads through huggingface_hub to a hub on this machine: what arrives there is what the run folder has."""

import os
import signal
import threading
import time

import pytest
from huggingface_hub import ModelCard

from nrt.config import Config
from nrt.errors import InputError
from nrt.run import RunWriter
from nrt.serving.export import create_repository
from nrt.trainer import train
from nrt.trainer.hub import HubUploads
from tests.cli.test_cli import nrt_command  # noqa: F401
from tests.serving.hub_server import HubServer
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

SETTINGS = {"steps": 4, "save_every": 2, "eval_every": 2, "hub.repo": "me/sums"}


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("NO_PROXY", "*")
        yield server


def test_checkpoints_and_model_are_uploaded(hub, make_config):  # noqa: F811
    run = train(make_config(**SETTINGS))
    assert hub.repositories == {"me/sums": True}
    assert [message for message, _ in hub.commits] == ["Step 2, by nrt", "Step 4, by nrt"]
    assert hub.tags == {"step-000002": 1, "step-000004": 2}
    folders = (run.path / "checkpoints" / "step-000002" / "model", run.model_dir)
    for (_, uploaded), folder in zip(hub.commits, folders, strict=True):
        names = {file.name for file in folder.iterdir()}
        assert set(uploaded) == names | {"README.md", "nrt.json", "vllm_reasoning.py"}
        for name in names:
            assert uploaded[name] == (folder / name).read_bytes(), name
    cards = [ModelCard(files["README.md"].decode()) for _, files in hub.commits]
    assert "| 2, of 4 prompts with 3 traces each |" in cards[0].text
    assert "step 0 (6 rows) | step 4 (6 rows) | difference" in cards[1].text
    assert "# sums\n" in cards[1].text
    assert (
        "hf download me/sums vllm_reasoning.py --local-dir .\nvllm serve me/sums " in cards[1].text
    )
    assert "--reasoning-parser-plugin vllm_reasoning.py " in cards[1].text
    assert not (run.path / "upload").exists()
    assert all(record["kind"] != "hub" for record in run.warnings())


def test_a_tag_names_the_commit_of_its_run(hub, make_config):  # noqa: F811
    """Also where an earlier run has left its tags, and where others commit in between."""
    hub.tags = {"step-000002": 0, "step-000004": 0}
    hub.after_commit = lambda: hub.commits.append(("another's", {}))
    run = train(make_config(**SETTINGS))
    messages = [message for message, _ in hub.commits]
    assert messages == ["Step 2, by nrt", "another's", "Step 4, by nrt", "another's"]
    assert hub.tags == {"step-000002": 1, "step-000004": 3}
    assert all(record["kind"] != "hub" for record in run.warnings())


def test_a_checkpoint_is_left_out_while_an_upload_goes_on(hub, make_config, tmp_path):  # noqa: F811
    """The hub takes no commit before the run has left one out; the last model waits."""
    warnings = tmp_path / "run" / "warnings.jsonl"

    def wait():
        while not (warnings.exists() and "the model of step 4 is left out" in warnings.read_text()):
            time.sleep(0.05)

    hub.before_commit = wait
    train(make_config(**SETTINGS | {"steps": 6, "eval_every": 0}))
    assert [message for message, _ in hub.commits] == ["Step 2, by nrt", "Step 6, by nrt"]


def test_a_failed_upload_does_not_end_the_run(hub, make_config):  # noqa: F811
    hub.refuse_after = 1
    run = train(make_config(**SETTINGS))
    (warning,) = [record for record in run.warnings() if record["kind"] == "hub"]
    assert "the model was not uploaded to me/sums" in warning["message"]
    assert run.model_dir.is_dir()
    assert not (run.path / "upload").exists()


def test_a_model_that_cannot_be_copied_is_a_warning(hub, tmp_path):
    """A link among the files of a model is refused."""
    with RunWriter.create(tmp_path / "run", Config(model="some/base")):
        pass
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.json").write_text("{}")
    (tmp_path / "model" / "b.json").symlink_to("a.json")
    warnings = []
    with HubUploads(tmp_path / "run", "me/sums") as uploads:
        uploads.warn = warnings.append
        uploads.push(tmp_path / "model", 2)
    assert len(warnings) == 1
    assert "the model of step 2 cannot be copied" in warnings[0]
    assert hub.commits == []
    assert not [path for path in (tmp_path / "run").iterdir() if "upload" in path.name]


def interrupt_at_once():
    raise KeyboardInterrupt


def interrupt_the_wait():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.parametrize("interrupt", [interrupt_at_once, interrupt_the_wait])
def test_an_interrupt_gives_up_the_upload(hub, tmp_path, interrupt):
    """The hub takes no commit before the test is over."""
    started, end = threading.Event(), threading.Event()

    def wait():
        started.set()
        end.wait(60)

    hub.before_commit = wait
    create_repository("me/sums", private=True)
    with RunWriter.create(tmp_path / "run", Config(model="some/base")):
        pass
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.json").write_text("{}")

    def upload():
        with HubUploads(tmp_path / "run", "me/sums") as uploads:
            uploads.push(tmp_path / "model", 2)
            assert started.wait(60)
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        upload()
    assert hub.commits == []
    assert not (tmp_path / "run" / "upload").exists()
    end.set()


def test_a_hub_that_cannot_be_reached_is_known_before_the_first_step(hub, make_config, tmp_path):  # noqa: F811
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match=r"hub\.repo=me/sums: the repository me/sums cannot be"):
        train(make_config(**SETTINGS))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_start_that_a_tracker_ends_leaves_no_repository(hub, make_config, tmp_path):  # noqa: F811
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="tracker tensorboard cannot start"):
        train(make_config(**SETTINGS, trackers=["tensorboard"]))
    assert hub.repositories == {}


def test_a_wrong_name_is_refused(make_config):  # noqa: F811
    with pytest.raises(InputError, match=r"hub\.repo=sums: give USER/NAME"):
        train(make_config(**{"hub.repo": "sums"}))


def test_the_end_alone_and_an_export(hub, make_config, nrt_command, tmp_path):  # noqa: F811
    run = train(make_config(**SETTINGS, **{"hub.when": "end", "hub.private": False}))
    assert [message for message, _ in hub.commits] == ["Step 4, by nrt"]
    out = tmp_path / "out"
    status, stdout, stderr = nrt_command("export", str(run.path), str(out), "--push", "me/mine")
    assert status == 0, stderr
    assert f"{hub.address}/me/mine" in stdout
    assert hub.repositories == {"me/sums": False, "me/mine": True}
    assert hub.commits[1][1] == {file.name: file.read_bytes() for file in out.iterdir()}
    hub.refuse_after = 2
    new = tmp_path / "new folder"
    status, _, stderr = nrt_command("export", str(run.path), str(new), "--push", "me/mine")
    assert status == 1
    assert f"which is complete, with `hf upload me/mine '{new}'`" in stderr
    assert (new / "README.md").is_file()
    status, _, stderr = nrt_command("export", str(run.path), str(out), "--push", "me/another")
    assert (status, "exists already" in stderr) == (2, True)
    assert "me/another" not in hub.repositories
