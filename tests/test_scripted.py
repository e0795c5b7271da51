from __future__ import annotations

import pytest

from nrt.errors import InputError
from nrt.rollout import Request, Sampler
from nrt.types import Sample
from tests.scripted import ScriptedSampler

STOP = frozenset({2})


def test_samples_are_cut_at_stop_ids_and_at_the_cap() -> None:
    sampler: Sampler = ScriptedSampler(lambda prompt, n: [[*prompt, 2, 9], [5] * 9][:n])
    request = Request([(7,), (8, 8, 8, 8)], n=2, stop_ids=STOP, cap=4, seed=0)
    assert sampler.sample(request) == [
        [Sample((7, 2)), Sample((5, 5, 5, 5))],
        [Sample((8, 8, 8, 8)), Sample((5, 5, 5, 5))],
    ]
    sampler.load_weights([])


def test_scripts_that_no_model_could_sample() -> None:
    request = Request([(7,)], n=1, stop_ids=STOP, cap=4, seed=0)
    with pytest.raises(InputError, match="stop id"):
        ScriptedSampler(lambda prompt, n: [[5, 6]]).sample(request)
    request = Request([(7,)], n=2, stop_ids=STOP, cap=4, seed=0)
    with pytest.raises(InputError, match="n=2"):
        ScriptedSampler(lambda prompt, n: [[2]]).sample(request)
