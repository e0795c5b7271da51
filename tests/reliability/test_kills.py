"""Real runs killed with SIGKILL in every phase and resumed: `kills.py` does it, in a process of its own that has started no threads."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability.armed import PHASES

ROOT = Path(__file__).parents[2]


def kill(folder, *arguments):
    """The log's rows, by column; every fault is in the output of a failure."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.reliability.kills", str(folder / "work"), "--log", str(folder / "log.tsv"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names, *rows = (line.split("\t") for line in (folder / "log.tsv").read_text(encoding="utf-8").splitlines())
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_twenty_kills(tmp_path):
    rows = kill(tmp_path, "--each", "2", "--most", "20", "--variants", "one-pass,two-updates")
    assert len(rows) >= 20
    assert len({row["phase"] for row in rows}) >= 8


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    """docs/results/kills.tsv is the log of as many, in seven parts."""
    rows = kill(tmp_path, "--each", "24", "--eval")
    counts = Counter(row["phase"] for row in rows)
    assert counts.keys() == PHASES.keys()
    assert min(counts.values()) >= 20
    assert len(rows) >= 200
