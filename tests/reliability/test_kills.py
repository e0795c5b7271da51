"""Real runs killed with SIGKILL in every phase and resumed: `kills.py` does it, in a process of its own that has started no threads."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from tests.reliability.armed import PHASES
from tests.reliability.runs import GroupKill

ROOT = Path(__file__).parents[2]


def kill(folder, *arguments):
    """The log's rows, by column; every fault is in the output of a failure."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "tests.reliability.kills",
        str(folder / "work"),
        "--log",
        str(folder / "log.tsv"),
        *arguments,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names, *rows = (
        line.split("\t") for line in (folder / "log.tsv").read_text(encoding="utf-8").splitlines()
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_twenty_kills(tmp_path):
    rows = kill(tmp_path, "--each", "3", "--most", "20", "--variants", "one-pass,two-updates")
    assert len(rows) >= 20
    assert len({row["phase"] for row in rows}) >= 8


GROUP = """
fsdp	train run	scoring	1	after	0
fsdp	train resume	checkpoint	1	torn .5	all
"""
"""Once process 1 had a traceback for it: FSDP misses process 0 amid a forward."""


def test_processes_under_torchrun_killed(tmp_path):
    """One of two, and both: what is left ends by itself, says why in a line, and a resume is the uninterrupted run."""
    names = [field.name for field in fields(GroupKill)]
    log = ["\t".join(names)]
    for line in GROUP.strip().splitlines():
        row = dict(
            zip(
                ("variant", "command", "phase", "entry", "instant", "victim"),
                line.split("\t"),
                strict=True,
            )
        )
        log.append(
            "\t".join(
                {"seed": "0", "chain": "0", "statuses": "– –", **row}.get(name, "")
                for name in names
            )
        )
    (tmp_path / "again.tsv").write_text("\n".join(log))
    rows = kill(tmp_path, "--again", str(tmp_path / "again.tsv"), "--chain", "0")
    assert [(row["phase"], row["instant"], row["victim"]) for row in rows] == [
        ("scoring", "after", "0"),
        ("checkpoint", "torn 0.5", "all"),
    ]
    assert rows[0]["statuses"] in ("– 1", "– –"), "torchrun's SIGTERM may be faster"


@pytest.mark.slow
def test_a_judge_killed(tmp_path):
    """Nothing that was kept is asked for again."""
    rows = kill(tmp_path, "--each", "20", "--phases", "judge", "--eval", "--variants", "one-pass")
    assert len(rows) >= 20


@pytest.mark.slow
def test_sixty_kills_under_torchrun(tmp_path):
    """docs/results/kills-torchrun.tsv is the log of as many."""
    rows = kill(tmp_path, "--processes", "2", "--each", "8", "--seed", "1")
    assert {row["victim"] for row in rows} == {"0", "1", "all"}
    assert {row["variant"] for row in rows} == {"ddp", "fsdp"}


@pytest.mark.slow
def test_a_comparison_killed(tmp_path):
    """Alone, and with its runs; one that goes on without it is waited for."""
    rows = kill(
        tmp_path, "--each", "5", "--phases", "runs,tables", "--compare", "--variants", "one-pass"
    )
    assert {row["command"] for row in rows} == {"compare alone", "compare and its runs"}


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    """docs/results/kills.tsv is the log of as many, in seven parts."""
    rows = kill(tmp_path, "--each", "24", "--eval")
    counts = Counter(row["phase"] for row in rows)
    assert counts.keys() == {*PHASES, "judge"}
    assert min(counts.values()) >= 20
    assert len(rows) >= 200
