"""Run folders: names, writing, reading, resuming, and the models in them."""

import math
from pathlib import Path

import pytest

from nrt.config import build_config
from nrt.errors import InputError
from nrt.run import Run, RunWriter, load_run, run_folder, step_name
from nrt.system.manifest import write_manifest

CONFIG = build_config(
    {"steps": 5, "data": {"answer": "after:####"}, "markers": {"start_from": "\n"}}
)


def write_steps(writer, first, last, heldout_every=2):
    """Write what the training of these steps writes."""
    for step in range(first, last + 1):
        writer.trace(
            {"step": step, "text": f"Ünï {step} \u2028 \ud800", "logps": [-0.1 * step, -1 / 3]}
        )
        writer.metrics(
            {
                "step": step,
                "reward/gain": step / 7,
                "loss/total": math.nan if step == 2 else 1e-17 * step,
            }
        )
        if step % 2:
            writer.warn("odd", f"step {step} is odd", step, count=step)
        if step % heldout_every == 0:
            writer.heldout(step, [{"id": f"file:{row}", "logp": -row / step} for row in range(3)])


def streams(path):
    names = [
        "metrics.jsonl",
        "traces.jsonl",
        "warnings.jsonl",
        *(f"heldout/{file.name}" for file in sorted((path / "heldout").iterdir())),
    ]
    return {name: (path / name).read_bytes() for name in names}


# --- names ---


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("demo", "runs/demo"),
        ("demo.1", "runs/demo.1"),
        ("./demo", "demo"),
        ("a/b", "a/b"),
        ("demo/", "demo"),
        (".", "."),
        ("..", ".."),
        ("/tmp/x", "/tmp/x"),
        (Path("demo"), "demo"),
    ],
)
def test_a_bare_name_is_in_runs_and_a_path_is_a_path(name, path):
    assert run_folder(name) == Path(path)


def test_home_is_expanded_and_an_empty_name_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder("~/x") == tmp_path / "x"
    with pytest.raises(InputError, match="set run=NAME"):
        run_folder("")


# --- writing and reading ---


def test_written_records_are_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunWriter.create("demo", CONFIG) as writer:
        assert not writer.resumed
        write_steps(writer, 1, 4)
    run = load_run("demo")
    assert run.path == Path("runs/demo")
    assert run.config == CONFIG
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]
    assert run.metrics()[2] == {"step": 3, "reward/gain": 3 / 7, "loss/total": 3e-17}
    assert run.metrics()[1]["loss/total"] is None
    assert run.traces()[0] == {"step": 1, "text": "Ünï 1 \u2028 \ud800", "logps": [-0.1, -1 / 3]}
    assert run.warnings() == [
        {"step": s, "kind": "odd", "message": f"step {s} is odd", "count": s} for s in (1, 3)
    ]
    assert run.heldout_steps() == [2, 4]
    assert run.heldout(2)[1] == {"id": "file:1", "logp": -0.5}
    assert run.heldout() == run.heldout(4)
    assert run.model_dir == run.path / "model"
    assert not (run.path / "lock").exists()


def test_lines_are_json_with_the_step_first(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        writer.metrics({"b": 0.1, "step": 1, "a": [float("inf"), {"c": -math.inf}]})
        assert (
            tmp_path / "metrics.jsonl"
        ).read_text() == '{"step": 1, "b": 0.1, "a": [null, {"c": null}]}\n'


@pytest.mark.parametrize(
    "value", [0.1, 1e-300, 5e-324, -0.0, math.pi, 1 / 3, 1.7976931348623157e308, 2**60 + 1]
)
def test_numbers_keep_their_precision(tmp_path, value):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        writer.metrics({"step": 1, "x": value})
    (record,) = Run(tmp_path).metrics()
    assert math.copysign(1, record["x"]) == math.copysign(1, value)
    assert record["x"] == value


def test_a_record_without_a_step_or_with_an_object_raises(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        with pytest.raises(KeyError):
            writer.metrics({"x": 1.0})
        with pytest.raises(TypeError):
            writer.metrics({"step": 1, "x": object()})
    assert Run(tmp_path).metrics() == []


def test_a_new_run_is_empty_but_readable(tmp_path):
    with RunWriter.create(tmp_path, CONFIG):
        run = Run(tmp_path)
        assert (run.metrics(), run.traces(), run.warnings(), run.heldout(), run.checkpoints()) == (
            [],
            [],
            [],
            [],
            [],
        )


def test_a_half_written_last_line_is_ignored(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        writer.metrics({"step": 1})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write('{"step": 2, "text": "ü'.encode()[:-1])  # killed within a character
        assert Run(tmp_path).metrics() == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        writer.metrics({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2,\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is not JSON"):
        Run(tmp_path).metrics()


def test_a_model_is_not_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-model").mkdir()
    Path("my-model/config.json").write_text("{}")
    with pytest.raises(InputError, match="my-model is the folder of a model; give the name or"):
        load_run("my-model")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not a run: it has no config\.yaml"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="is not a run"):
        RunWriter.reopen(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_an_unknown_heldout_step_lists_the_known_ones(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        write_steps(writer, 1, 4)
    with pytest.raises(InputError, match=r"step 3; it has \[2, 4\]"):
        Run(tmp_path).heldout(3)


def test_checkpoints_are_sorted_by_step_and_complete(tmp_path):
    with RunWriter.create(tmp_path, CONFIG):
        pass
    for name in (
        "step-1000000",
        "step-000200",
        "step-000100",
        "step-000300.tmp",
        ".step-000400",
        "other",
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000050").write_text("not a folder")
    assert [path.name for path in Run(tmp_path).checkpoints()] == [
        "step-000100",
        "step-000200",
        "step-1000000",
    ]
    assert step_name(1_000_000) == "step-1000000"


# --- a new run ---


def test_a_folder_with_a_run_is_refused_and_unchanged(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        write_steps(writer, 1, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=r"already holds a run .* run=NAME, or continue it with nrt resume "
    ):
        RunWriter.create(tmp_path, CONFIG)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_files_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunWriter.create(tmp_path, CONFIG):
        assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .* run=NAME"):
        RunWriter.create(tmp_path / "file" / "run", CONFIG)


# --- resuming ---


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    with RunWriter.create(tmp_path / "uninterrupted", CONFIG) as writer:
        write_steps(writer, 1, 6)
    with RunWriter.create(tmp_path / "cut", CONFIG) as writer:
        write_steps(writer, 1, 5)
        with (tmp_path / "cut" / "traces.jsonl").open("a") as file:
            file.write('{"step": 6, "te')
    with RunWriter.reopen(tmp_path / "cut", 3) as writer:
        assert writer.resumed
        assert Run(tmp_path / "cut").heldout_steps() == [2]
        write_steps(writer, 4, 6)
    assert streams(tmp_path / "cut") == streams(tmp_path / "uninterrupted")
    assert (tmp_path / "cut" / "config.yaml").read_bytes() == (
        tmp_path / "uninterrupted" / "config.yaml"
    ).read_bytes()


def test_resuming_after_the_last_step_changes_nothing(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        write_steps(writer, 1, 4)
    before = streams(tmp_path)
    with RunWriter.reopen(tmp_path, 4):
        assert streams(tmp_path) == before


def test_nothing_temporary_is_left(tmp_path):
    with RunWriter.create(tmp_path, CONFIG) as writer:
        write_steps(writer, 1, 2)
    with RunWriter.reopen(tmp_path, 1):
        pass
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [
        "config.yaml",
        "environment.json",
        "heldout",
        "metrics.jsonl",
        "traces.jsonl",
        "warnings.jsonl",
    ]


# --- the model ---


def test_model_folders_of_a_run(tmp_path):
    with RunWriter.create(tmp_path / "run", CONFIG):
        pass
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match="model does not exist; checkpoints that do: none"):
        run.model_of(None)
    checkpoint = run.path / "checkpoints" / "step-000003"
    for folder in (run.model_dir, checkpoint / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    write_manifest(checkpoint)
    assert run.model_of(None) == run.model_dir
    assert run.model_of(3) == checkpoint / "model"
    with pytest.raises(InputError, match="checkpoints that do: step-000003"):
        run.model_of(4)
    (checkpoint / "model" / "config.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"damaged: .*config.json is not what was written.*choose another step"
    ):
        run.model_of(3)


def test_traces_can_be_read_by_offset(tmp_path):
    """The index does not parse the lines; a half-written last line is ignored."""
    with RunWriter.create(tmp_path / "run", CONFIG) as writer:
        write_steps(writer, 1, 3)
    file = tmp_path / "run" / "traces.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    run = load_run(tmp_path / "run")
    assert [step for step, _ in run.trace_lines()] == [1, 2]
    assert [run.trace_at(offset) for _, offset in run.trace_lines()] == run.traces()
    file.write_bytes(b"nonsense\n")
    with pytest.raises(InputError, match="the line at byte 0 is not JSON"):
        run.trace_at(0)
    file.unlink()
    assert run.trace_lines() == []
