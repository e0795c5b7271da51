"""What kills and stress once broke, each by itself (docs/results/reliability.md)."""

import os
import shutil

import pytest
from matplotlib.figure import Figure

import nrt
from nrt.analysis.plots import Panel, plot_dynamics
from nrt.errors import InputError, RunError
from nrt.serving import export
from nrt.system import files as durable
from nrt.trainer import setup, start
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401
from tests.trainer.test_checkpoints import At, calls, names, pointer, resume  # noqa: F401
from tests.trainer.test_train import assert_same_run


class Cut(BaseException):
    """The process is gone."""


def cut():
    raise Cut


def test_cut_before_its_first_checkpoint(make_config, tmp_path):  # noqa: F811
    """It begins again in its folder: the seeds are the same, and so are the files."""
    whole = nrt.train(make_config(run=str(tmp_path / "whole")))
    files = {path.relative_to(whole.path) for path in whole.path.rglob("*")}
    for phase, n in (("evaluating", 1), ("sampling", 1), ("updating", 2)):
        run = tmp_path / f"{phase}-{n}"
        with pytest.raises(Cut):
            nrt.train(make_config(run=str(run)), listener=At(phase, n, cut))
        again = resume(make_config, run)
        assert_same_run(whole, again)
        assert {path.relative_to(again.path) for path in again.path.rglob("*")} == files
        assert [entry["step"] for entry in again.environment] == [0, 0]


@pytest.mark.parametrize("left", ["model", "checkpoints/latest"])
def test_checkpoints_that_are_gone_are_no_beginning(make_config, left):  # noqa: F811
    """Deleted by hand: hours of metrics are not thrown away."""
    run = nrt.train(make_config())
    for folder in run.checkpoints():
        shutil.rmtree(folder)
    other = run.path / ("model" if left != "model" else "checkpoints")
    shutil.rmtree(other)
    before = run.metrics()
    with pytest.raises(InputError, match=f"{left} but no checkpoint to resume from"):
        resume(make_config, run.path)
    assert run.metrics() == before
    assert not (run.path / "lock").exists()


def test_the_lock_comes_before_the_checkpoints(make_config, monkeypatch):  # noqa: F811
    """Else a process could resume from what another one has long gone beyond, or has pruned away."""
    run = nrt.train(make_config())
    seen = []
    newest = start.newest_undamaged
    monkeypatch.setattr(
        start,
        "newest_undamaged",
        lambda folders: seen.append((run.path / "lock").exists()) or newest(folders),
    )
    resume(make_config, run.path)
    assert seen == [True]


def test_the_lock_is_given_back_where_nothing_can_be_set_aside(make_config, monkeypatch):  # noqa: F811
    def refuse(*_):
        raise OSError(5, os.strerror(5))

    run = nrt.train(make_config())
    monkeypatch.setattr(start, "set_damaged_aside", refuse)
    with pytest.raises(RunError, match="Input/output error"):
        resume(make_config, run.path)
    assert not (run.path / "lock").exists()


def test_pointers_and_pruning_are_made_up_for(make_config, tmp_path):  # noqa: F811
    """Killed between the checkpoint's name and what follows from it, at the last step."""
    settings = {"keep": 1, "keep_best": "-heldout/length"}
    run = nrt.train(make_config(**settings))
    kept, best = names(run), pointer(run, "best")
    shutil.copytree(run.checkpoints()[-1], run.path / "checkpoints" / "step-000001")
    (run.path / "checkpoints" / "latest").write_text("step-000001\n")
    (run.path / "checkpoints" / "best").unlink()
    again = resume(make_config, run.path, **settings)
    assert (names(again), pointer(again, "latest"), pointer(again, "best")) == (
        kept,
        "step-000003\n",
        best,
    )


def test_what_replaces_a_file_is_on_the_disk_first(make_config, calls):  # noqa: F811
    """The metrics that a resume cuts, and the final model: else a power cut could leave an empty file under the name."""
    run = nrt.train(make_config()).path
    calls.clear()
    resume(make_config, run)
    for new, name in (
        (".metrics.jsonl.tmp", "metrics.jsonl"),
        (".model.new/model.safetensors", "model"),
    ):
        (moved,) = [
            i for i, (call, path) in enumerate(calls) if call != "fsync" and path == str(run / name)
        ]
        assert ("fsync", str(run / new)) in calls[:moved]
        assert ("fsync", str(run)) in calls[moved:]


def test_half_deleted_is_no_checkpoint(make_config, monkeypatch):  # noqa: F811
    run = nrt.train(make_config())
    first, last = run.checkpoints()
    monkeypatch.setattr(
        durable.shutil, "rmtree", lambda folder, **_: cut() if folder.exists() else None
    )
    with pytest.raises(Cut):
        durable.remove_folder(first)
    assert run.checkpoints() == [last]
    monkeypatch.undo()
    resume(make_config, run.path)
    assert not list((run.path / "checkpoints").glob("*.tmp"))


def test_an_export_is_whole_or_not_there(make_config, monkeypatch, tmp_path):  # noqa: F811
    run, out = nrt.train(make_config()), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", lambda *_: cut())
        with pytest.raises(Cut):
            export.export_run(run, out)
    assert not out.exists()
    export.export_run(run, out)
    assert (out / "README.md").is_file()
    assert not list(tmp_path.glob(".out.*"))


def test_a_picture_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    file = tmp_path / "accuracy.png"
    file.write_text("old")

    def half(self, target, **_):
        target.write(b"ha")
        cut()

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(Cut):
        plot_dynamics([Panel("entropy", {})], file)
    assert file.read_text() == "old"


def test_a_warning_belongs_to_the_step_that_is_under_way(make_config, monkeypatch):  # noqa: F811
    """A resume from before that step does it again, and so must not keep the first one."""
    engines, build = [], setup.build_engine
    monkeypatch.setattr(
        setup,
        "build_engine",
        lambda *given, **more: engines.append(build(*given, **more)) or engines[-1],
    )

    class WarnsAndEnds(At):
        """Runs short of memory in the second step and in the third."""

        def phase(self, name):
            if name == "updating" and engines[-1].version in (1, 2):
                engines[-1].warn("less memory")
            super().phase(name)

    config = make_config(steps=4)
    with pytest.raises(Cut):
        nrt.train(config, listener=WarnsAndEnds("saving", 2, cut))
    again = nrt.train(make_config(steps=4, resume=config.run), listener=WarnsAndEnds("", 0, cut))
    assert [warning["step"] for warning in again.warnings() if warning["step"]] == [2, 3]


@pytest.mark.parametrize(
    ("phase", "n"), [("sampling", 2), ("updating", 2), ("saving", 1), ("evaluating", 2)]
)
def test_a_run_folder_that_is_moved_away_ends_the_run_in_a_line(phase, n, make_config, tmp_path):  # noqa: F811
    """And it can be gone on with from where it is put back to."""
    whole = nrt.train(make_config(run=str(tmp_path / "whole")))
    run, aside = tmp_path / "run", tmp_path / "aside"
    with pytest.raises(
        RunError,
        match=r"run no longer exists; put it back where it was, then resume from the last checkpoint: nrt resume ",
    ):
        nrt.train(make_config(run=str(run)), listener=At(phase, n, lambda: run.rename(aside)))
    shutil.rmtree(run, ignore_errors=True)
    aside.rename(run)
    (run / "lock").unlink(missing_ok=True)
    assert_same_run(whole, resume(make_config, run))
