from __future__ import annotations

import pytest

from nrt.errors import InputError
from nrt.rollout import Request, Sampler, ScriptedSampler
from nrt.types import Sample

STOP = frozenset({2})


def test_ids_come_back_cut_as_a_models_would_be() -> None:
    sampler: Sampler = ScriptedSampler(lambda prompt, n: [[*prompt, 2, 9], [5] * 9][:n])
    assert sampler.sample(Request([(7,), (8, 8, 8, 8)], n=2, stop_ids=STOP, cap=4, seed=0)) == [
        [Sample((7, 2)), Sample((5, 5, 5, 5))],
        [Sample((8, 8, 8, 8)), Sample((5, 5, 5, 5))],
    ]
    sampler.load_weights([])


def test_a_script_that_no_model_could_follow() -> None:
    with pytest.raises(InputError, match="stop id"):
        ScriptedSampler(lambda prompt, n: [[5, 6]]).sample(Request([(7,)], n=1, stop_ids=STOP, cap=4, seed=0))
    with pytest.raises(InputError, match="n=2"):
        ScriptedSampler(lambda prompt, n: [[2]]).sample(Request([(7,)], n=2, stop_ids=STOP, cap=4, seed=0))
