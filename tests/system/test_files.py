"""Foreign files and folders: nrt refuses links and special files, and never replaces them."""

import csv
import os
import socket
from pathlib import Path

import pytest

from nrt.analysis.report.figures import _write_csv
from nrt.errors import InputError
from nrt.run import Run
from nrt.run.writer import RunWriter
from nrt.serving import export
from nrt.system.files import (
    atomic_file,
    atomic_folder,
    cached_folder,
    copy_plain_files,
    open_to_append,
    remove_leftovers,
    temporary_path,
    write_file,
)
from nrt.system.manifest import write_folder
from tests.cli.test_cli import nrt_command  # noqa: F401
from tests.runs import write_run


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_text("mine")
    return file


# --- writing ---


def obstacles(folder, precious):
    """Create links and special files; return (kind, name) of each."""
    (folder / "link").symlink_to(precious)
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return [("a link", "link"), ("a link", "dangling"), ("a folder", "folder"), ("a pipe", "pipe")]


def test_only_a_plain_file_is_replaced(tmp_path, precious):
    for kind, name in obstacles(tmp_path, precious):
        before = os.lstat(tmp_path / name)
        for write in (lambda path: write_file(path, ["x"]), open_to_append):
            with pytest.raises(
                InputError,
                match=f"{name} is {kind}, not a plain file; choose another name, or move it away",
            ):
                write(tmp_path / name)
        assert os.lstat(tmp_path / name)[:6] == before[:6]
    assert precious.read_text() == "mine"
    with pytest.raises(InputError, match="/dev/null is a device, not a plain file"):
        write_file(Path(os.devnull), ["x"])
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
    with pytest.raises(InputError, match="is a socket"):
        write_file(tmp_path / "s", ["x"])


def test_temporary_names_are_random_and_created_exclusively(tmp_path, precious, monkeypatch):
    """A link at the temporary name is an error, and its target does not change."""
    assert len({temporary_path(tmp_path / "a", "tmp").name for _ in range(100)}) == 100
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    temporary_path(tmp_path / "a", "tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", ["x"])
    temporary_path(tmp_path / "b", "tmp").symlink_to(tmp_path)
    with pytest.raises(FileExistsError):
        write_folder(tmp_path / "b", lambda folder: None)
    temporary_path(tmp_path / "c", "new").symlink_to(tmp_path)
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "c"):
        pass
    assert precious.read_text() == "mine"


def test_a_file_has_the_usual_permissions_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_file(tmp_path / "ours", ["x"])
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "ours") as file:
        file.write("half" * (1 // 0))
    assert (tmp_path / "ours").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "plain"]


def test_only_old_temporary_files_are_removed(tmp_path):
    old, young, folder, other = (
        temporary_path(tmp_path / name, "tmp") for name in ("a", "a", "b", "c")
    )
    for file in (old, young, other):
        file.touch()
    folder.mkdir()
    (folder / "weights").touch()
    (tmp_path / ".a.notes.tmp").touch()  # not written by nrt
    for path in (old, folder / "weights", folder):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, ".a.notes.tmp"}
    remove_leftovers(tmp_path, name="c", older_than=0.0)
    assert not other.exists()


def test_a_cached_folder_is_complete_or_absent_and_the_first_writer_wins(tmp_path):
    abandoned = temporary_path(tmp_path / "a", "new")
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))  # a process was killed while it wrote

    def fail():
        with cached_folder(tmp_path / "a") as new:
            (new / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    with cached_folder(tmp_path / "a") as second:
        with cached_folder(tmp_path / "a") as first:
            (first / "weights").write_text("first")
        (second / "weights").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "weights").read_text() == "first"


# --- a run folder ---


@pytest.mark.parametrize("name", [".report.html.tmp", "report.html"])
def test_a_report_does_not_replace_a_link(name, tmp_path, precious, nrt_command):  # noqa: F811
    run = write_run(tmp_path / "run")
    (run / name).symlink_to(precious)
    status, _, err = nrt_command("report", str(run))
    assert precious.read_text() == "mine"
    if name == "report.html":
        assert (status, len(err.splitlines())) == (2, 1)
        assert "is a link, not a plain file" in err
    else:
        assert status == 0
        assert (run / name).is_symlink(), "nrt must leave it"


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null", "folder"])
def test_a_report_is_written_to_a_plain_file_only(target, tmp_path, nrt_command):  # noqa: F811
    run = write_run(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    before = os.lstat(target).st_rdev
    status, _, err = nrt_command("report", str(run), "-o", target)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "not a plain file" in err
    assert os.lstat(target).st_rdev == before


LINKS = ["metrics.jsonl", "traces.jsonl", "warnings.jsonl", "environment.json", "heldout", "heldout/step-000006.jsonl", "judge", "eval",
         "model", "model/notes.txt", "checkpoints", "checkpoints/step-000001/model/notes.txt"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_links_inside_a_run_folder_are_not_followed(name, tmp_path, precious, nrt_command):  # noqa: F811
    run = write_run(tmp_path / "run")
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    else:
        path.symlink_to(precious)
    message = f"{name.split('/')[-1]} is a link, and nrt follows none inside a run folder"
    for command in (
        ["report", str(run)],
        ["report", str(run), "--text"],
        ["export", str(run), "out"],
    ):
        status, _, err = nrt_command(*command)
        assert (status, len(err.splitlines())) == (2, 1)
        assert message in err
    with pytest.raises(InputError, match=message):
        RunWriter.reopen(run, 3)
    assert not (tmp_path / "out").exists()
    assert precious.read_text() == "mine"


def test_a_run_folder_may_be_a_link_and_trackers_may_have_links(tmp_path):
    run = write_run(tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to(run)
    (run / "wandb").mkdir()
    (run / "wandb" / "latest-run").symlink_to(tmp_path)
    assert Run(tmp_path / "run").metrics()


def test_only_plain_files_are_copied(tmp_path, precious):
    source, target = tmp_path / "model", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    (source / "sub" / "a").write_text("a")
    copy_plain_files(source, target)
    assert (target / "sub" / "a").read_text() == "a"
    (source / "z").symlink_to(precious)
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match="z is a link, not a plain file"):
        copy_plain_files(source, tmp_path / "again")


def test_a_refused_export_leaves_nothing(tmp_path, precious, monkeypatch):
    run = write_run(tmp_path / "run")
    (run / "model" / "config.json").write_text("{}")
    # As if the link appeared after the run was opened:
    monkeypatch.setattr("nrt.run.reader.find_link", lambda path: None)
    opened = Run(run)
    (run / "model" / "notes.txt").symlink_to(precious)
    with pytest.raises(InputError, match=r"notes.txt is a link"):
        export.export_run(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- tables ---


def test_no_table_cell_is_a_formula(tmp_path):
    """Spreadsheets execute cells that begin with = + - @.

    Names of variants and sources are foreign text. Numbers stay numbers.
    """
    cells = ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", "plain = 1", -0.5, 3]
    with _write_csv(tmp_path / "table.csv", ["name"] * len(cells), [cells]).open(
        newline=""
    ) as file:
        _, row = csv.reader(file)
    assert row == ["'=1+1", "'+1", "'-1", "'@sum", "'\t=1", "'\r=1", "plain = 1", "-0.5", "3"]
