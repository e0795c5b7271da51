"""START is no action inside a trace, in both scorers and in the sampler.

The policy over traces is the softmax over all other tokens.
"""

import pytest
import torch

from nrt.rollout import HFSampler
from nrt.rollout.base import Request
from nrt.scoring import PaddedScorer, token_logprobs
from nrt.scoring.packing import banned_tokens
from nrt.types import Role, Row
from tests.scoring.by_hand import check_scorers
from tests.tiny import PAD, VOCAB, tiny_model

START, END = 5, 6
TAIL, ROLES = (START, 7, 8, END, 9), (Role.START, Role.TRACE, Role.TRACE, Role.END, Role.ANSWER)
ROWS = [
    Row((3, 4, 11), TAIL, ROLES, end_sampled=True),
    Row((3, 4, 11), (START, END, 9), (Role.START, Role.END, Role.ANSWER), end_sampled=False),
    Row((12,), (9, 10), (Role.ANSWER, Role.ANSWER), end_sampled=False),
]


def by_hand(model, row):
    """Return log-probabilities: of trace and END without START, of START and answers among all."""
    logits = model(torch.tensor([row.ids])).logits[0].double()
    logps = []
    for place, (token, role) in enumerate(zip(row.tail_ids, row.tail_roles, strict=True)):
        logits_V = logits[len(row.prompt_ids) + place - 1].clone()
        if role in (Role.TRACE, Role.END):
            logits_V[START] = -torch.inf
        logps.append(logits_V.log_softmax(-1)[token])
    return torch.stack(logps)


def test_banned_tokens_by_position():
    banned_N = banned_tokens(ROWS, "cpu")
    assert banned_N is not None
    assert banned_N.tolist() == [-1, START, START, START, -1, -1, START, -1, -1, -1]
    assert banned_tokens(ROWS[2:], "cpu") is None
    roles = (Role.START, Role.TRACE, Role.END)
    row_with_start = Row((3,), (START, START, END), roles, end_sampled=True)
    banned_N = banned_tokens([row_with_start], "cpu")
    assert banned_N is not None
    assert banned_N.tolist() == [-1, -1, START], "a START that was sampled keeps its probability"


@pytest.mark.parametrize("tile", [2**18, 64])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_scorers_give_the_numbers_and_gradients_computed_by_hand(architecture, tile, monkeypatch):
    monkeypatch.setitem(token_logprobs.TILE, "cpu", tile)  # with 64 the vocabulary is split
    monkeypatch.setattr(token_logprobs, "TILE_TOKENS", {"cpu": 4, "cuda": 4})
    model = tiny_model(architecture)
    expected = torch.cat([by_hand(model, row) for row in ROWS])
    for entropy_N in check_scorers(model, ROWS, expected):
        assert entropy_N.isfinite().all()


def test_the_sampler_never_draws_start_and_reports_the_scorers_numbers():
    model = tiny_model(initializer_range=0.1)
    request = Request(
        [(3, 4, START), (8, START)],
        n=64,
        stop_ids=frozenset({END}),
        cap=12,
        seed=0,
        banned=frozenset({START}),
    )
    groups = HFSampler(model, PAD).sample(request)
    assert not any(START in sample.ids for group in groups for sample in group)
    without_ban = HFSampler(model, PAD).sample(
        Request(request.prompts, n=64, stop_ids=frozenset({END}), cap=12, seed=0)
    )
    assert any(START in sample.ids for group in without_ban for sample in group)
    rows, reported = [], []
    for prompt, group in zip(request.prompts, groups, strict=True):
        for sample in group:
            ended = sample.ids[-1] == END
            roles = (Role.START, *[Role.TRACE] * (len(sample.ids) - ended), *[Role.END] * ended)
            rows.append(Row(prompt[:-1], (START, *sample.ids), roles, end_sampled=ended))
            reported.append(torch.tensor(sample.logps))
    scored = [logp[1:] for logp, _ in PaddedScorer(PAD)(model, rows).rows()]
    torch.testing.assert_close(torch.cat(scored).detach(), torch.cat(reported), atol=1e-4, rtol=0)
    assert torch.cat(reported).max() < 0
    assert max(max(s.ids) for g in groups for s in g) < VOCAB
