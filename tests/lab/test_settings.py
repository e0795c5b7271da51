"""Each recipe of the miniature has a base and a world, and they fit."""

import json
from pathlib import Path

import pytest

from nrt.config import load_config
from nrt.lab.settings import BASES, pairs
from nrt.lab.world import ADD_WEIGHTS, WEIGHTS


@pytest.mark.parametrize(("recipe", "families"), [("miniature", WEIGHTS), ("miniature-hard", WEIGHTS), ("miniature-weak", ADD_WEIGHTS)])
def test_pairs_are_of_the_world_that_the_base_knows(recipe, families, tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    settings = pairs(BASES[recipe])
    config = load_config(recipe, [*settings, "model=m"])
    assert config.max_trace_tokens == 20
    assert isinstance(config.data.train, str)
    rows = [json.loads(line) for line in Path(config.data.train).read_text(encoding="utf-8").splitlines()]
    assert {row["family"] for row in rows} == set(families)
    assert dict(BASES[recipe].weights) == dict(families)


def test_bases_differ():
    assert len({base.name for base in BASES.values()}) == len(BASES) == 3
