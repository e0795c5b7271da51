"""`python -m benchmarks.gpu`, which has ten minutes on a GPU: all of it runs on a CPU with small shapes."""

import json

import pytest

from benchmarks import gpu
from nrt.scoring import token_logprobs


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_runs_in_small(part, monkeypatch):
    monkeypatch.setattr(token_logprobs, "TILE_TOKENS", dict(token_logprobs.TILE_TOKENS))
    monkeypatch.setattr(gpu, "PARITY", {name: gpu.PARITY[name] for name in ("llama", "gemma2")})
    found = dict(gpu.PARTS[part].work(True))
    assert json.loads(json.dumps(found)) == found
    assert all("error" not in figures for figures in found.values())
    if part == "parity":
        assert all(figures["packed"] for name, figures in found.items() if "float32" in name)
    if part == "run":
        assert found["LoRA, resumed"] == found["all weights, resumed"] == {"steps": 5}


def test_a_part_that_is_cut_or_fails_keeps_its_cases(monkeypatch, tmp_path):
    """A program in place of Python prints one case, and then waits or fails."""
    monkeypatch.setitem(gpu.PARTS, "head", gpu.Part(gpu.head, budget=1))
    for end, error in (("sleep 5", "not done within 1 s"), ("echo broken >&2; exit 3", "broken")):
        program = tmp_path / "program"
        program.write_text(f'#!/bin/sh\necho \'{{"case": {{"seconds": 1}}}}\'\n{end}\n')
        program.chmod(0o755)
        monkeypatch.setattr(gpu.sys, "executable", str(program))
        found = gpu._in_process("head", True)
        assert found["case"] == {"seconds": 1}
        assert error in found["error"]


def test_the_parts_have_ten_minutes():
    assert sum(part.budget for part in gpu.PARTS.values()) <= 600
