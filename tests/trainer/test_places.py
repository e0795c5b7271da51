"""Kernels whose rounding depends on a row's place: equal traces have equal rewards, and rounding makes no advantages."""

import torch

from nrt.data import trace_row
from nrt.scoring.flex import make_mask_mod
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.trainer.collect import compute_group, score_baselines, score_groups, scored_rows
from nrt.trainer.groups import SampledGroup
from nrt.trainer.metrics import PhaseTimer
from nrt.trainer.setup import prepare
from nrt.types import Trace

BLOCK = 16


def in_aligned_blocks(self, module, query, key, value, *, scale, window, softcap):
    """Attention over blocks of keys aligned to absolute places, as FlexAttention's kernel sums: the output so far is rescaled and
    rounded to bfloat16 after each block, so a row's rounding depends on where it stands in the packed sequence."""
    self.calls.append((module, window))
    N = query.shape[2]
    visible = make_mask_mod(self.layout, window, query.device)
    place = torch.arange(N)
    seen_NN = visible(0, 0, place[:, None], place[None, :])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out = torch.zeros_like(query)
    most = query.new_full(query.shape[:3], -1e30, dtype=torch.float32)
    total = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for first in range(0, N, BLOCK):
        block = slice(first, first + BLOCK)
        scores = (query @ key[:, :, block].transpose(-1, -2)).float() * scale
        scores = scores.masked_fill(~seen_NN[:, block], -1e30)
        new_most = torch.maximum(most, scores.amax(-1))
        weights = (scores - new_most[..., None]).exp() * seen_NN[:, block]
        before = (most - new_most).exp()
        total, most = total * before + weights.sum(-1), new_most
        out = (
            out.float() * before[..., None] + (weights.to(value.dtype) @ value[:, :, block]).float()
        ).to(query.dtype)
    return (out.float() / total[..., None]).to(query.dtype).transpose(1, 2)


def groups_of(parts, drafts):
    learner, timer = parts.learner, PhaseTimer()
    baselines = score_baselines(learner, drafts, timer)
    scores = score_groups(learner, drafts, timer)
    return [
        compute_group(learner, None, drafts, baselines, g, tails) for g, tails in enumerate(scores)
    ]


def test_equal_traces_have_equal_rewards(make_config, monkeypatch):
    """Two empty traces and six bad ones in bfloat16: the empty ones have A = 0 wherever exact arithmetic says so."""
    exact = prepare(make_config(method="nrt-ws-inv-p", traces=8))
    rounded = prepare(make_config(method="nrt-ws-inv-p", traces=8, dtype="bfloat16"))
    generator = torch.Generator().manual_seed(0)
    drafts = []
    for pair in exact.data.pairs[:16]:
        bad = [
            Trace(tuple(torch.randint(5, 18, (6,), generator=generator).tolist()), finished=False)
            for _ in range(6)
        ]
        traces = (Trace((), finished=True), *bad, Trace((), finished=False, end_token=True))
        rows = tuple(trace_row(pair, trace, exact.learner.policy.markers) for trace in traces)
        drafts.append(SampledGroup(pair, traces, rows, ()))
    expected = groups_of(exact, drafts)
    monkeypatch.setattr(PrefixAttention, "__call__", in_aligned_blocks)
    found = groups_of(rounded, drafts)
    scores = [rounded.learner.policy.score(scored_rows(rounded.learner, draft)) for draft in drafts]
    apart = max(float((tails[0][0] - tails[7][0]).abs().max()) for tails in scores)
    assert apart > 1e-3, "or nothing would be shown: the scorer gives equal rows different numbers"
    checked = 0
    for theirs, ours in zip(expected, found, strict=True):
        assert theirs.credit is not None
        assert ours.credit is not None
        assert ours.credit.reward_K[0] == ours.credit.reward_K[7] == ours.credit.base_reward
        assert ours.advantage_K[0] == ours.advantage_K[7]
        margins = (theirs.credit.reward_K[1:7] / theirs.credit.base_reward - 1).abs()
        if not theirs.advantage_K.any() and margins.min() > 0.3:
            assert ours.advantage_K.tolist() == [0.0] * 8
            checked += 1
    assert checked > 0
