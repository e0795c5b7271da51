"""Trackers in their own local forms: each test reads back what the tracker's library wrote."""

import errno
import json
import math
import os
import shutil
import struct
import time
from importlib.util import find_spec
from typing import Any

import pytest

from nrt import Callback
from nrt.config import Config
from nrt.errors import InputError, RunError
from nrt.run import Run
from nrt.trainer import train
from nrt.trainer.trackers import TRACKERS
from nrt.trainer.tracking import Tracking, check_trackers, flatten, open_tracking, sample_table

tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
STEPS = {"steps": 4, "save_every": 2, "eval_every": 0}
SAMPLES = {"tracking": {"samples": 2}}


def events(run):
    """The event files of a run."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalars(run, name):
    """(step, value) pairs of the event files."""
    return [(event.step, event.value) for event in events(run).Scalars(name)]


def of_metrics(run, name):
    """(step, value) pairs of metrics.jsonl."""
    return [(line["step"], line[name]) for line in Run(run).metrics() if name in line]


class StopAt(Callback):
    """Raises an error after a step, so that the run ends there as if it had crashed."""

    def __init__(self, step):
        self.last = step

    def on_step(self, metrics, control):
        if metrics["step"] == self.last:
            raise ValueError("crash")


def train_and_resume(make_config, run, **settings):
    """Train until a crash after step 3, and from the checkpoint of step 2 to the end."""
    with pytest.raises(RunError, match="crash"):
        train(make_config(run=run, **STEPS, **settings), callbacks=[StopAt(4)])
    return train(make_config(run=run, resume=str(run), **STEPS, **settings))


@tensorboard
def test_tensorboard_shows_what_the_run_folder_has(make_config, tmp_path):
    run = tmp_path / "run"
    train_and_resume(make_config, run, trackers=["tensorboard"], **SAMPLES)
    for name in ("reward/gain", "loss/total"):
        logged, expected = scalars(run, name), of_metrics(run, name)
        assert [step for step, _ in logged] == [1, 2, 3, 4]
        assert logged == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert scalars(run, "heldout/logp")[0][0] == 0
    tables = events(run).Tensors("samples/text_summary")
    assert [event.step for event in tables] == [2, 4]
    text = tables[0].tensor_proto.string_val[0].decode()
    group = Run(run).traces()[1]
    assert text.startswith("| prompt | trace | reference | reward | gain |")
    assert f"{group['traces'][0]['reward']:.4g}" in text
    assert len(text.splitlines()) == 2 + len(group["traces"])


@tensorboard
def test_a_run_that_starts_again_hides_what_it_had(tmp_path):
    """Without a checkpoint a resume begins at step 0."""
    config = Config(trackers=("tensorboard",))
    for values in ({0: 9.0, 1: 10.0, 2: 20.0}, {0: 1.0, 1: 2.0}):
        with open_tracking(config, tmp_path, first=0) as tracking:
            for step, value in values.items():
                tracking.log({"step": step, "reward/gain": value})
    assert scalars(tmp_path, "reward/gain") == [(0, 1.0), (1, 2.0)]


@tensorboard
def test_files_of_two_starts_are_in_order_by_name(tmp_path):
    """Also if the second start comes at once. Counters at the end of names would not order them."""
    config = Config(trackers=("tensorboard",))
    for _ in range(2):
        with open_tracking(config, tmp_path, first=0):
            pass
    seconds = [file.name.split(".")[3] for file in (tmp_path / "tensorboard").iterdir()]
    assert len(set(seconds)) == 2


@tensorboard
def test_settings_are_in_tensorboard(tmp_path):
    with open_tracking(Config(trackers=("tensorboard",), seed=7), tmp_path):
        pass
    content = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"optimizer.lr" in content


class ReplaceTensorBoard(Callback):
    """After step 1 a file is where TensorBoard writes its folder."""

    def on_evaluate(self, metrics, rows, control):
        if metrics["step"] == 2:
            folder = self.run / "tensorboard"
            shutil.rmtree(folder)
            folder.write_text("")

    def on_start(self, run, control):
        self.run = run.path


@tensorboard
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_that_fails_does_not_end_the_run(make_config, tmp_path):
    run = train(
        make_config(run=tmp_path / "run", steps=4, trackers=["tensorboard"]),
        callbacks=[ReplaceTensorBoard()],
    )
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3, 4]
    (warning,) = [record for record in run.warnings() if record["kind"] == "tracker"]
    assert "tracker tensorboard failed" in warning["message"]
    assert warning["step"] == 2


def fails(run):
    """A tracker that cannot start."""
    raise ValueError("not logged in")


@tensorboard
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("service", ["tracker", "hub"])
def test_a_failed_start_removes_what_it_created(make_config, monkeypatch, tmp_path, service, kept):
    """TensorBoard has opened its folder when the next tracker fails, or the hub, which is off."""
    monkeypatch.setitem(TRACKERS, "json", fails)  # under the name of a package that is installed
    run = tmp_path / "run"
    if kept:
        (run / "tensorboard").mkdir(parents=True)
    settings = {"trackers": ["tensorboard"], "hub.repo": "me/sums"}
    if service == "tracker":
        settings = {"trackers": ["tensorboard", "json"]}
    with pytest.raises(InputError, match=r"not logged in|hub\.repo=me/sums: .* cannot be created"):
        train(make_config(run=run, steps=1, **settings))
    assert [file.name for file in run.iterdir()] == ["tensorboard"] * kept


def test_a_full_disk_at_the_start_leaves_no_run(make_config, monkeypatch, tmp_path):
    """The disk fills up just before the id is written; the system's answer is put in its mouth."""

    def write(path, lines):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("nrt.trainer.tracking.write_file", write)
    monkeypatch.setattr("nrt.trainer.tracking.check_trackers", lambda names: None)
    config = make_config(run=tmp_path / "run", steps=1, trackers=["tensorboard"])
    with pytest.raises(RunError, match=r"tracking\.json cannot be written .* start the run again"):
        train(config)
    assert not (tmp_path / "run" / "config.yaml").exists()


@tensorboard
def test_a_tracker_that_cannot_start_leaves_no_run(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be")
    config = make_config(run=tmp_path / "run", steps=1, trackers=["tensorboard"])
    with pytest.raises(InputError, match=r"tracker tensorboard cannot start: .* leave it out"):
        train(config)
    (tmp_path / "run" / "tensorboard").unlink()
    assert train(config).metrics()


def offline_records(run):
    """The records of each start of a run in wandb's offline files, in order of time."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2

    def read():
        files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
        starts = [log_records(file.read_bytes()) for file in files]
        return [[messages.Record.FromString(record) for record in records] for records in starts]

    def is_complete(records):
        return any(record.WhichOneof("record_type") == "exit" for record in records)

    deadline = time.monotonic() + 60  # wandb's own process may still write
    while not all(map(is_complete, read())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return read()


def log_records(data, block=32768):
    """The records of a LevelDB log with a header of 7 bytes: https://github.com/google/leveldb/blob/main/doc/log_format.md"""
    position, record, records = 7, b"", []
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(record)
            record = b""
    return records


def history(records):
    """The logged values of one start, step by step; those of a table are under dotted names."""
    lines = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            lines.append({".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    tracking = {"project": "sums", "group": "tests", "tags": ["a", "b"], "samples": 2}
    train_and_resume(make_config, run, trackers=["wandb"], tracking=tracking)
    starts = offline_records(run)
    assert len(starts) == 2
    headers = [
        next(r.run for r in records if r.WhichOneof("record_type") == "run") for records in starts
    ]
    run_id = json.loads((run / "tracking.json").read_text())["id"]
    for header in headers:
        assert (header.run_id, header.project, header.run_group) == (run_id, "sums", "tests")
        assert (header.display_name, list(header.tags)) == ("run", ["a", "b"])
        settings = {item.key: json.loads(item.value_json) for item in header.config.update}
        assert settings["optimizer.lr"] == 0.01
    logged = [{line["_step"]: line for line in history(records)} for records in starts]
    assert set(logged[0]) >= {0, 1, 2, 3}
    assert set(logged[1]) == {3, 4}
    gains = dict(of_metrics(run, "reward/gain"))
    assert logged[1][4]["reward/gain"] == pytest.approx(gains[4])
    assert logged[0][2]["samples._type"] == "table-file"
    tables = sorted(run.glob("wandb/*/files/media/table/samples_2_*.json"))
    table = json.loads(tables[0].read_text())
    assert table["columns"][:3] == ["prompt", "trace", "reference"]
    assert table["data"][0][0] == Run(run).traces()[1]["prompt"]
    exits = [
        r.exit.exit_code
        for records in starts
        for r in records
        if r.WhichOneof("record_type") == "exit"
    ]
    assert exits == [1, 0]


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio")
def test_trackio_local(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    tracking = {"project": "sums", "group": "tests", "samples": 2, "id": "mine"}
    trained = train_and_resume(make_config, run, trackers=["trackio"], tracking=tracking)
    (warning,) = [record for record in trained.warnings() if record["kind"] == "tracker"]
    assert "trackio has steps up to 3 already" in warning["message"]
    assert capsys.readouterr().out == ""
    assert SQLiteStorage.get_runs("sums") == ["run-mine"]
    logs = SQLiteStorage.get_logs("sums", "run-mine")
    gains = [(line["step"], line["reward/gain"]) for line in logs if "reward/gain" in line]
    assert gains == [(step, pytest.approx(value)) for step, value in of_metrics(run, "reward/gain")]
    assert [line["step"] for line in logs if "samples" in line] == [2, 4]
    config = SQLiteStorage.get_run_config("sums", "run-mine")
    assert config is not None
    assert config["optimizer.lr"] == 0.01


def test_the_table_of_a_group_by_hand():
    group = {
        "prompt": "2 + 3 ?",
        "answer": "so 5",
        "answer_tokens": ["so", " 5"],
        "base_reward": 0.25,
        "traces": [{"text": "add", "reward": 0.75, "answer_logp": [math.log(0.5), math.log(0.25)]}],
    }
    table = sample_table([group])
    assert table is not None
    (row,) = table.rows
    assert row[:4] == ("2 + 3 ?", "add", "so 5", 0.75)
    assert row[4:7] == (0.5, pytest.approx(0.375), pytest.approx(0.25))
    assert row[7] == " 5"
    assert sample_table([{"prompt": "2 + 3 ?", "answer": "5"}]) is None  # SFT


class Ahead:
    """A tracker that has the steps before 3 already; it keeps what it receives."""

    first = 3

    def __init__(self):
        self.steps = []

    def log(self, step, numbers, table):
        self.steps.append(step)

    def close(self, *, failed): ...


def test_steps_that_a_tracker_has_already_are_left_out_with_one_warning():
    tracker, warnings = Ahead(), []
    tracking = Tracking({"wandb": tracker})
    tracking.warn = warnings.append
    for step in range(1, 5):
        tracking.log({"step": step, "reward/gain": 1.0})
    assert tracker.steps == [3, 4]
    (warning,) = warnings
    assert "wandb has steps up to 2 already" in warning


def test_a_table_that_cannot_be_built_is_a_warning():
    """A reference without tokens has no lowest confidence."""
    warnings = []
    tracking = Tracking({"wandb": Ahead()}, samples=1)
    tracking.warn = warnings.append
    traces = [{"text": "add", "reward": 0.75, "answer_logp": []}]
    group = {"prompt": "?", "answer": "", "answer_tokens": [], "base_reward": 0.0, "traces": traces}
    tracking.log({"step": 3}, [group])
    (warning,) = warnings
    assert "tracker wandb failed" in warning


def test_no_trackers_do_nothing(tmp_path):
    with open_tracking(Config(), tmp_path) as tracking:
        tracking.log({"step": 1, "reward/gain": 1.0})
    tracking.close(failed=False)
    Tracking().log({"step": 1})
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_names_the_nearest():
    with pytest.raises(
        InputError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"
    ):
        check_trackers(["tensorbord"])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_says_what_to_install(name):
    if find_spec(name) is not None:
        check_trackers([name])
        return
    with pytest.raises(InputError, match=f"pip install {name}"):
        check_trackers([name])


def test_a_folder_with_a_trackers_name_is_not_the_tracker(tmp_path, monkeypatch):
    missing = [name for name in TRACKERS if find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    (tmp_path / missing[0]).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec(missing[0]) is not None
    with pytest.raises(InputError, match=f"pip install {missing[0]}"):
        check_trackers(missing[:1])


def test_a_table_needs_traces(make_config):
    with pytest.raises(InputError, match=r"tracking\.samples=5 .* set log_traces=1"):
        make_config(**{"tracking.samples": 5, "log_traces": 0})


@tensorboard
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 3}', '{"id": "a/b"}'])
def test_a_damaged_id_is_refused(content, tmp_path):
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(InputError, match=r"tracking\.json is damaged"):
        open_tracking(Config(trackers=("tensorboard",)), tmp_path)


def test_flatten_leaves_nothing_nested():
    flat = flatten(Config().model_dump(mode="json"))
    assert flat["optimizer.lr"] == 1e-5
    assert flat["data.columns.question"] == "None"
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
