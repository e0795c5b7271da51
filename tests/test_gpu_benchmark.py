"""`python -m benchmarks.gpu`, which has ten minutes on a GPU: all of it runs on a CPU with small shapes."""

import json

import pytest

from benchmarks import gpu
from nrt.scoring import logprob_head


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_runs_in_small(part, monkeypatch):
    monkeypatch.setattr(logprob_head, "TILE_TOKENS", dict(logprob_head.TILE_TOKENS))
    monkeypatch.setattr(gpu, "PARITY", {"gemma3": gpu.PARITY["gemma3"]})
    found = gpu.PARTS[part].work(True)
    assert json.loads(json.dumps(found)) == found
    assert all("error" not in figures for figures in found.values())
    if part == "parity":
        assert all(figures["packed"] for figures in found.values())
    if part == "run":
        assert all(figures["steps_after_resume"] == 5 for figures in found.values())


def test_a_part_that_fails_leaves_its_error(monkeypatch):
    monkeypatch.setattr(gpu.sys, "executable", "false")
    assert "error" in gpu._in_process("head", True)


def test_the_parts_have_ten_minutes():
    assert sum(part.budget for part in gpu.PARTS.values()) <= 600
