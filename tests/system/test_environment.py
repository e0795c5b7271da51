"""Description of the environment in a run folder."""

import os
import subprocess
import sys
from pathlib import Path

from nrt.config import Config
from nrt.run import Run, RunWriter
from nrt.system.environment import describe_environment


def test_each_start_is_described(tmp_path):
    with RunWriter.create(tmp_path, Config()):
        pass
    with RunWriter.reopen(tmp_path, 0):
        pass
    with RunWriter.reopen(tmp_path, 7):
        pass
    entries = Run(tmp_path).environment
    assert [entry["step"] for entry in entries] == [0, 0, 7]
    assert entries[0]["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert set(entries[0]["packages"]) == {
        "native-reasoning",
        "torch",
        "transformers",
        "tokenizers",
        "vllm",
        "lm-eval",
    }
    assert entries[0]["packages"]["torch"][0].isdigit()
    assert entries[0]["cpus"] == os.cpu_count()


def test_no_environment_variable_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sesame-3141592")
    with RunWriter.create(tmp_path, Config()):
        pass
    assert "sesame" not in "".join(
        path.read_text() for path in tmp_path.iterdir() if path.is_file()
    )


def test_the_git_revision_is_dirty_after_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment()["git"] is None

    def git(*arguments):
        identity = [
            "-c",
            "user.name=n",
            "-c",
            "user.email=n@example.org",
            "-c",
            "commit.gpgsign=false",
        ]
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    Path("file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert describe_environment()["git"] == revision
    Path("file").write_text("two")
    assert describe_environment()["git"] == revision + "-dirty"
