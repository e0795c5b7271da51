"""Every command and Python block of README and Quickstart does what it says, with a tiny model and small caps.

`make …`, `pip …` and `nrt demo` are left out: tests/wheel and tests/lab run what they do.
"""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nrt.cli.app import main
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md")
SMALL = {
    "threads": 1, "steps": 2, "batch": 2, "traces": 2, "max_trace_tokens": 4, "max_answer_tokens": 8,
    "max_prompt_tokens": 16, "device": "cpu",
}  # fmt: skip


def blocks(page, language):
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def commands(page):
    """The words of each `nrt` command of the page but `nrt demo`."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("nrt ")]
    return [each for each in words if each[1] != "demo"]


@pytest.fixture
def folder(tmp_path, monkeypatch, model_dir, pairs_file):  # noqa: F811
    """A folder with MODEL, train.jsonl and valid.jsonl, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(model_dir)
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_bytes(pairs_file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, folder, monkeypatch, capsys):
    names = set()
    (folder / "train.jsonl").rename(folder / "all.jsonl")  # `nrt data split` writes both again
    (folder / "valid.jsonl").unlink()
    for words in commands(page):
        names.add(words[1])
        words = ["4" if word == "200" else word for word in words]  # of the few rows
        if words[1] in ("data", "train"):
            words = [*words, *(f"{key}={value}" for key, value in SMALL.items())]
        if "--serve" in words:
            serve(words)
            continue
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("what is one ?\n"))
        status = 0
        try:
            main()
        except SystemExit as left:
            status = left.code
        printed = capsys.readouterr()
        assert not status, (words, printed.out, printed.err)
    assert {"data", "train", "resume", "report", "chat", "export"} <= names
    assert (folder / "my-model" / "model.safetensors").is_file()


def serve(words):
    """Start a command that serves a page, and end it when it has printed its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        try:
            assert any("http://127.0.0.1:" in line for line in process.stdout)
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("folder")
def test_python(page, capsys):
    found = blocks(page, "python")
    assert found
    for block in found:
        code = block.replace(", steps=100", "").replace("checker=", "**SMALL, checker=")
        exec(compile(code, page, "exec"), {"SMALL": SMALL})
    assert "reward/gain" in capsys.readouterr().out
