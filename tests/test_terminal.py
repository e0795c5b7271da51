"""What commands print: foreign control characters, and an output that fails."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table

from nrt.run import Run
from nrt.terminal import Output, OutputError, Terminal, shown
from tests.runs import write_run
from tests.test_cli import nrt_command, small  # noqa: F401
from tests.training.conftest import model_dir, pairs_file  # noqa: F401

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\r\x08\x7f\u202etxt.exe\x00"


def test_control_characters_are_shown():
    assert shown("plain, é, 東京, 🙂, two\nlines\tand a tab") == "plain, é, 東京, 🙂, two\nlines\tand a tab"
    assert shown(HOSTILE) == r"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\r\x08\x7f\u202etxt.exe\x00"
    assert shown("\u2066a\u2069\u200f") == "\\u2066a\\u2069\u200f", "marks of a writing that runs from right to left are text"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_text_reaches_the_terminal_as_control(terminal):
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=terminal, width=200)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for what in (HOSTILE, table, Panel(HOSTILE)):
        console.print(what, markup=False, style="bold")
    text = out.getvalue()
    for sequence in ("\x1b]", "\x1b[2J", "\x1b[31m", "\x9b", "\x07", "\x7f", "\u202e", "\x08", "\x00"):
        assert sequence not in text
    assert ("\x1b[1m" in text) == terminal, "nrt's own styles are"


def test_a_foreign_run_is_printed_without_its_control_characters(tmp_path, nrt_command):  # noqa: F811
    run = write_run(tmp_path / "run", extra=HOSTILE.replace("\x00", ""))
    status, out, err = nrt_command("report", str(run), "--text")
    assert status == 0
    assert not [c for c in out + err if ord(c) < 32 and c not in "\n\t"]
    assert r"\x1b[31mred" in out
    (run / "metrics.jsonl").write_bytes(b"\x1b[31mnonsense\n")
    (run / "config.yaml").write_text("method: '\\e[31mx'\n")
    status, out, err = nrt_command("report", str(run), "--text")
    assert "\x1b" not in out + err


def run(*arguments, folder, stdout, **more):
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "nrt", *arguments], cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, **more
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["line", "json"])
def test_a_run_goes_on_when_its_output_fails(json_flag, tmp_path, small):  # noqa: F811
    """The disk of the log is full; the run folder's is not."""
    with open("/dev/full", "w") as full:
        done = run("train", *small, *json_flag, folder=tmp_path, stdout=full)
    assert done.returncode == 0, done.stderr
    assert "standard output cannot be written (No space left on device); the run goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert "runs/mine cannot be written" not in done.stderr
    assert [record["step"] for record in Run(tmp_path / "runs" / "mine").metrics()] == [1, 2]
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()


def test_a_run_goes_on_when_nobody_reads_it_any_more(tmp_path, small):  # noqa: F811
    """`nrt train --json | head -1`"""
    read, write = os.pipe()
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nrt", "train", *small, "--json"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        with os.fdopen(read) as first:
            assert json.loads(first.readline())["steps"] == 2
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "standard output cannot be written (Broken pipe); the run goes on" in err
    assert [record["step"] for record in Run(tmp_path / "runs" / "mine").metrics()] == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["report", "run", "--text"], ["--version"], ["train", "paper", "--dry-run"], ["--help"]])
def test_an_output_that_fails_is_said_in_a_line(command, tmp_path):
    write_run(tmp_path / "run")
    command = [part if part != "run" else "./run" for part in command]
    with open("/dev/full", "w") as full:
        done = run(*command, folder=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written (No space left on device)\n")


def test_a_reader_that_leaves_ends_a_command_as_it_ends_others(tmp_path):
    """`nrt report --text | head`: no message, and the status of a process that SIGPIPE ended."""
    write_run(tmp_path / "run")
    read, write = os.pipe()
    os.close(read)
    done = run("report", "./run", "--text", folder=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_other_failures_are_not_the_outputs(tmp_path):
    class Full(io.StringIO):
        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

        def write(self, text):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="standard output cannot be written"):
        Output(Full()).write("x")
    assert Output(io.StringIO()).write("four") == 4
