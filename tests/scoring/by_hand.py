"""Both scorers against log-probabilities computed by hand."""

import torch

from nrt.models.attention import install_attention
from nrt.scoring import PackedScorer, PaddedScorer
from tests.tiny import PAD


def check_scorers(model, rows, expected):
    """Assert that both scorers give these log-probabilities (float64, with gradient) and gradients.

    Returns the entropies of each scorer.
    """
    weights = torch.linspace(-1, 2, len(expected))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    entropies = []
    for scorer in (PaddedScorer(PAD), PackedScorer()):
        if isinstance(scorer, PackedScorer):
            install_attention(model)
        scores = scorer(model, rows)
        torch.testing.assert_close(scores.logp_N.double(), expected, atol=1e-5, rtol=1e-5)
        gradients = torch.autograd.grad((scores.logp_N * weights).sum(), list(model.parameters()))
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * max(1e-3, theirs.abs().max())
        entropies.append(scores.entropy_N)
    return entropies
