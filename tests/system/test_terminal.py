"""Console output of commands: control characters in foreign text, and a failing stdout."""

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
from nrt.system.terminal import OutputError, StandardOutput, Terminal, escape_control
from tests.cli.test_cli import nrt_command, small  # noqa: F401
from tests.runs import write_run
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\r\x08\x7f\u202etxt.exe\x00"


def test_control_characters_are_escaped():
    assert (
        escape_control("plain, é, 東京, 🙂, two\nlines\tand a tab")
        == "plain, é, 東京, 🙂, two\nlines\tand a tab"
    )
    assert (
        escape_control(HOSTILE)
        == r"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\r\x08\x7f\u202etxt.exe\x00"
    )
    assert escape_control("half a pair \ud800") == r"half a pair \ud800"
    # Right-to-left marks are text.
    assert escape_control("\u2066a\u2069\u200f") == "\\u2066a\\u2069\u200f"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_text_reaches_the_terminal_as_control(terminal):
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=terminal, width=200)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for renderable in (HOSTILE, table, Panel(HOSTILE)):
        console.print(renderable, markup=False, style="bold")
    text = out.getvalue()
    for sequence in (
        "\x1b]",
        "\x1b[2J",
        "\x1b[31m",
        "\x9b",
        "\x07",
        "\x7f",
        "\u202e",
        "\x08",
        "\x00",
    ):
        assert sequence not in text
    assert ("\x1b[1m" in text) == terminal, "nrt's own styles remain"


AS_IT_IS = "l100.jsonl:100: openai/gsm8k:train: 3:100:7 exp[lr] [/v1/push] [red]x[/red] :smiley:"


def test_texts_are_no_markup_and_no_emoji():
    out = io.StringIO()
    console = Terminal(file=out, width=200)
    table = Table(title=AS_IT_IS)
    table.add_column(AS_IT_IS)
    table.add_row(AS_IT_IS)
    console.print(AS_IT_IS, style="bold")
    console.print(table)
    assert out.getvalue().count(AS_IT_IS) == 4


def test_a_foreign_run_is_printed_without_control_characters(tmp_path, nrt_command):  # noqa: F811
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
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "nrt", *arguments],
        cwd=folder,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["line", "json"])
def test_a_run_continues_if_its_output_fails(json_flag, tmp_path, small):  # noqa: F811
    """The disk of the log is full, the disk of the run folder is not."""
    with open("/dev/full", "w") as full:
        done = run("train", *small, *json_flag, folder=tmp_path, stdout=full)
    assert done.returncode == 0, done.stderr
    assert (
        "standard output cannot be written (No space left on device); the run continues"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "runs/mine cannot be written" not in done.stderr
    assert [record["step"] for record in Run(tmp_path / "runs" / "mine").metrics()] == [1, 2]
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()


def test_a_run_continues_if_the_reader_of_its_output_exits(tmp_path, small):  # noqa: F811
    """`nrt train --json | head -1`"""
    read, write = os.pipe()
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nrt", "train", *small, "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(write)
        with os.fdopen(read) as first:
            assert json.loads(first.readline())["steps"] == 2
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "standard output cannot be written (Broken pipe); the run continues" in err
    assert [record["step"] for record in Run(tmp_path / "runs" / "mine").metrics()] == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "command",
    [["report", "run", "--text"], ["--version"], ["train", "paper", "--dry-run"], ["--help"]],
)
def test_a_failing_output_gives_one_line(command, tmp_path):
    write_run(tmp_path / "run")
    command = [part if part != "run" else "./run" for part in command]
    with open("/dev/full", "w") as full:
        done = run(*command, folder=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output cannot be written (No space left on device)\n",
    )


def test_a_closed_pipe_ends_a_command_like_sigpipe(tmp_path):
    """`nrt report --text | head`: no message, and the status of a process ended by SIGPIPE."""
    write_run(tmp_path / "run")
    read, write = os.pipe()
    os.close(read)
    done = run("report", "./run", "--text", folder=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_only_a_failing_stream_raises_output_error(tmp_path):
    class Full(io.StringIO):
        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

        def write(self, text):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="standard output cannot be written"):
        StandardOutput(Full()).write("x")
    assert StandardOutput(io.StringIO()).write("four") == 4
