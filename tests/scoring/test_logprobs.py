"""The padded scorer against the simplest forward: one row at a time, no padding, all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nrt.errors import InputError
from nrt.scoring import PaddedScorer, micro_batches, score_all
from nrt.scoring.padded import _entropy
from nrt.types import Row, TokenScores
from tests.tiny import ARCHITECTURES, PAD, hostile, random_rows, row, tiny_model

SCORER = PaddedScorer(PAD)
SHAPES = [
    (1, 9),
    (12, 3),
    (4, 17),
    (20, 1),
    (7, 7),
]  # prompts and tails of one token, and rows longer than the window of 5


def naive(model: PreTrainedModel, rows: list[Row]) -> TokenScores:
    logps, entropies = [], []
    for r in rows:
        logits = model(input_ids=torch.tensor([r.ids]), use_cache=False).logits[0].float()
        dist = logits[len(r.prompt_ids) - 1 : -1].log_softmax(-1)
        logps.append(dist[torch.arange(len(r.tail_ids)), torch.tensor(r.tail_ids)])
        entropies.append(-(dist.exp() * dist).sum(-1).detach())
    return TokenScores(torch.cat(logps), torch.cat(entropies), tuple(len(r.tail_ids) for r in rows))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_naive_forward(architecture: str, attention: str) -> None:
    if architecture == "gemma2" and attention == "sdpa":
        pytest.skip("transformers gives Gemma 2 no SDPA: it has attention softcaps")
    model = hostile(tiny_model(architecture, attention=attention))
    rows = random_rows(1, SHAPES)
    scores, expected = SCORER(model, rows), naive(model, rows)
    close(scores.logp_N, expected.logp_N)
    close(scores.entropy_N, expected.entropy_N)
    assert scores.lengths == expected.lengths == (9, 3, 17, 1, 7)
    assert scores.logp_N.dtype == scores.entropy_N.dtype == torch.float32
    assert scores.logp_N.requires_grad
    assert not scores.entropy_N.requires_grad


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_equals_the_naive_one(architecture: str, attention: str) -> None:
    """Pads, whose queries may see no key, add neither a gradient nor a NaN."""
    if architecture == "gemma2" and attention == "sdpa":
        pytest.skip("transformers gives Gemma 2 no SDPA: it has attention softcaps")
    model = tiny_model(architecture, attention=attention)
    rows = random_rows(2, SHAPES)
    weights = torch.linspace(-1, 1, sum(t for _, t in SHAPES))
    padded = gradients(model, SCORER(model, rows).logp_N @ weights)
    expected = gradients(model, naive(model, rows).logp_N @ weights)
    for name, gradient in expected.items():
        assert padded[name].isfinite().all(), name
        torch.testing.assert_close(
            padded[name], gradient, atol=1e-5 * largest(expected), rtol=0, msg=name
        )


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest(grads: dict[str, Tensor]) -> float:
    return max(g.abs().max().item() for g in grads.values())


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_the_window_changes_the_scores(architecture: str) -> None:
    rows = random_rows(1, SHAPES)
    narrow, wide = (
        SCORER(tiny_model(architecture, sliding_window=w), rows).logp_N for w in (5, 64)
    )
    assert (narrow - wide).abs().max() > 0.05


def test_row_order_and_padding_do_not_change_scores() -> None:
    model, rows = tiny_model(), random_rows(3, SHAPES)
    together = SCORER(model, rows).rows()
    backwards = SCORER(model, rows[::-1]).rows()[::-1]
    singly = [SCORER(model, [r]).rows()[0] for r in rows]
    other_pad = PaddedScorer(pad_id=17)(model, rows).rows()
    for others in (backwards, singly, other_pad):
        for (logp, entropy), (other_logp, other_entropy) in zip(together, others, strict=True):
            close(logp, other_logp)
            close(entropy, other_entropy)


def test_numbers_worked_by_hand() -> None:
    """All weights 0: uniform over 41 tokens, log p = −ln 41 = −3.71357, entropy ln 41."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data.zero_()
    scores = SCORER(model, [row([5], [6, 7]), row([5, 6], [7])])
    close(scores.logp_N, torch.full((3,), -3.7135721))
    close(scores.entropy_N, torch.full((3,), 3.7135721))


def test_a_token_of_probability_zero_leaves_the_entropy_finite() -> None:
    model = tiny_model()
    model.get_output_embeddings().weight.data.mul_(300)  # probabilities underflow
    scores = SCORER(model, random_rows(4, SHAPES))
    assert scores.entropy_N.isfinite().all()
    assert scores.logp_N.min() < -104  # exp of it is 0 in float32


def test_bfloat16_logits_are_upcast() -> None:
    model = tiny_model().bfloat16()
    scores, expected = SCORER(model, random_rows(5, SHAPES)), naive(model, random_rows(5, SHAPES))
    assert scores.logp_N.dtype == torch.float32
    close(scores.logp_N, expected.logp_N, 0.2)


def test_rows_need_a_prompt_and_a_tail() -> None:
    for bad in (row([], [5]), row([5], [])):
        with pytest.raises(InputError, match="prompt"):
            SCORER(tiny_model(), [bad])


def test_micro_batches_by_hand() -> None:
    """Widths 10, 4, 4, 6, limit 12: the 10 by itself; 6 with a 4 is 2 × 6 = 12; the last 4 does not fit, as 3 × 6 = 18."""
    rows = random_rows(0, [(5, 5), (2, 2), (2, 2), (3, 3)])
    assert micro_batches(rows, 12) == [[0], [3, 1], [2]]
    assert micro_batches(rows, 1) == [[0], [3], [1], [2]]  # each above the limit
    assert micro_batches(rows, 10_000) == [[0, 3, 1, 2]]
    assert micro_batches([], 12) == []


def test_micro_batches_count_both_sides_of_the_padding() -> None:
    """(8, 2) and (2, 8) are 10 wide each but 16 wide together: 32 padded tokens."""
    rows = random_rows(0, [(8, 2), (2, 8)])
    assert micro_batches(rows, 31) == [[0], [1]]
    assert micro_batches(rows, 32) == [[0, 1]]


@pytest.mark.parametrize("tokens_per_batch", [1, 60])
def test_score_all_keeps_the_order(tokens_per_batch: int) -> None:
    model, rows = tiny_model("gemma3"), random_rows(6, SHAPES * 3)
    scores, expected = score_all(SCORER, model, rows, tokens_per_batch), naive(model, rows)
    close(scores.logp_N, expected.logp_N)
    close(scores.entropy_N, expected.entropy_N)
    assert scores.lengths == expected.lengths
    assert not scores.logp_N.requires_grad


def test_score_all_without_rows() -> None:
    with pytest.raises(InputError, match="at least one"):
        score_all(SCORER, tiny_model(), [], 100)


def test_entropy_over_the_largest_vocabulary() -> None:
    """gemma's: on a CPU the sum of p is 1 but for 3e-5, which must not reach the entropy."""
    torch.manual_seed(0)
    logits = torch.randn(3, 262_144) * 5
    logp = logits.log_softmax(-1)
    exact = logits.double().log_softmax(-1)
    expected = -(exact.exp() * exact).sum(-1)
    assert (_entropy(logp).double() - expected).abs().max() < 1e-5
