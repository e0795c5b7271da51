"""The policy's temperature: the same in sampler and scorers, and only for what the policy sampled."""

import pytest
import torch

from nrt.rollout import HFSampler
from nrt.rollout.base import Request
from nrt.scoring import PaddedScorer, token_logprobs
from nrt.scoring.packing import temperatures
from nrt.types import Role, Row
from tests.scoring.by_hand import check_scorers
from tests.tiny import PAD, tiny_model

START, END = 5, 6
ROLES = (Role.START, Role.TRACE, Role.TRACE, Role.END, Role.ANSWER)
ROWS = [
    Row((3, 4, 11), (START, 7, 8, END, 9), ROLES, end_sampled=True, temperature=0.5),
    Row((3, 4, 11), (START, 7, 10, END, 9), ROLES, end_sampled=False, temperature=0.5),
    Row((3, 4), (END, 9), (Role.END, Role.SAMPLED_ANSWER), end_sampled=False, temperature=2.0),
    Row((12,), (9, 10), (Role.ANSWER, Role.ANSWER), end_sampled=False),
]
TEMPERATURES = [1, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 1, 1, 1, 2, 1, 1]
"""START, an appended END and reference answers have 1."""


def by_hand(model):
    logps, entropies = [], []
    divisors = iter(TEMPERATURES)
    for row in ROWS:
        logits = model(torch.tensor([row.ids])).logits[0].double()
        for place, (token, role) in enumerate(zip(row.tail_ids, row.tail_roles, strict=True)):
            logits_V = logits[len(row.prompt_ids) + place - 1] / next(divisors)
            if row.tail_roles[0] is Role.START and role in (Role.TRACE, Role.END):
                banned = torch.arange(len(logits_V)) == START
                logits_V = logits_V.masked_fill(banned, -1e30)
            logp_V = logits_V.log_softmax(-1)
            logps.append(logp_V[token])
            entropies.append(torch.special.entr(logp_V.exp()).sum())
    return torch.stack(logps), torch.stack(entropies)


def test_temperatures_by_position():
    temperature_N = temperatures(ROWS, "cpu")
    assert temperature_N is not None
    assert temperature_N.tolist() == TEMPERATURES
    assert temperatures(ROWS[3:], "cpu") is None


@pytest.mark.parametrize("tile", [2**18, 64])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere"])
def test_scorers_give_the_numbers_and_gradients_computed_by_hand(architecture, tile, monkeypatch):
    """Also with softcaps and logit scales, which come before the temperature."""
    monkeypatch.setitem(token_logprobs.TILE, "cpu", tile)  # with 64 the vocabulary is split
    monkeypatch.setattr(token_logprobs, "TILE_TOKENS", {"cpu": 4, "cuda": 4})
    model = tiny_model(architecture, initializer_range=0.1)
    expected, expected_entropy = by_hand(model)
    for entropy_N in check_scorers(model, ROWS, expected):
        torch.testing.assert_close(entropy_N.double(), expected_entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_the_sampler_reports_what_the_scorers_give(temperature):
    model = tiny_model(initializer_range=0.1)
    stops, banned = frozenset({END}), frozenset({START})
    prompt = (3, 4, START)
    request = Request(
        [prompt], n=32, stop_ids=stops, cap=6, seed=0, temperature=temperature, banned=banned
    )
    (samples,) = HFSampler(model, PAD).sample(request)
    rows, reported = [], []
    for sample in samples:
        ended = sample.ids[-1] == END
        inner = sample.ids[:-1] if ended else sample.ids
        tail = (START, *inner, END, 9)
        roles = (Role.START, *(Role.TRACE,) * len(inner), Role.END, Role.ANSWER)
        rows.append(Row(prompt[:-1], tail, roles, ended, temperature))
        reported += sample.logps
    scores = PaddedScorer(PAD)(model, rows)
    sampled = torch.cat([row.sampled_mask for row in rows])
    torch.testing.assert_close(scores.logp_N[sampled], torch.tensor(reported), atol=1e-5, rtol=0)
