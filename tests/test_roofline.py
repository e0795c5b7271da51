"""`python -m benchmarks.roofline`: operations by hand, and all cases of a small model."""

import pytest
import torch

from benchmarks import roofline
from benchmarks.common import Shape
from benchmarks.roofline import BANDWIDTH, GPU, MATMUL_SHARE, Operations, measure, table
from benchmarks.scoring import rows_of
from nrt.scoring import token_logprobs


def test_operations_by_hand():
    """A large product takes as long as its arithmetic; an addition and a small product as long as their traffic."""
    n, small = 8192, 16
    x, y = (torch.empty(n, n, device="meta", dtype=torch.bfloat16) for _ in range(2))
    with Operations() as large:
        torch.mm(x, y.T)
    arithmetic = 2 * n**3 / (MATMUL_SHARE * GPU.bfloat16_flops)
    assert large.seconds == {"matmul": pytest.approx(arithmetic)}
    with Operations() as addition:
        x.add_(y[:1].expand(n, n))  # reads x and one row, writes x
    assert addition.seconds == {"element-wise": pytest.approx(2 * (2 * n * n + n) / BANDWIDTH)}
    with Operations() as product, product.within("head"):
        torch.mm(x[:small, :small], y[:small, :small])
    assert product.seconds == {"head": pytest.approx(2 * 3 * small**2 / BANDWIDTH)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own code while it traces
def test_a_small_model(monkeypatch):
    monkeypatch.setattr(token_logprobs, "TILE", dict(token_logprobs.TILE))
    monkeypatch.setattr(token_logprobs, "TILE_TOKENS", dict(token_logprobs.TILE_TOKENS))
    monkeypatch.setattr(roofline, "TILE", token_logprobs.TILE)
    monkeypatch.setattr(roofline, "TILE_TOKENS", token_logprobs.TILE_TOKENS)
    small = {
        "model_type": "llama",
        "vocab_size": 600,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    monkeypatch.setitem(roofline.BUILT_IN, "small", small)
    monkeypatch.setitem(roofline.FITS, "small", 100)
    figures = measure("small", rows_of(Shape(2, 3, 20, 10, 5)))
    tokens = 2 * (20 + 3 * (10 + 5 + 1))
    assert figures["tokens"] == tokens
    totals = {name: case["total"] for name, case in figures.items() if "compiled," in name}
    assert len(totals) == 5
    assert all(0 < figures[name]["utilisation"] < 1 for name in totals)
    for state in ("compiled", "not compiled"):
        assert totals[f"{state}, not recomputed"] < totals[f"{state}, recomputed"]
    for again in ("recomputed", "not recomputed"):
        compiled, plain = (figures[f"{state}, {again}"] for state in ("compiled", "not compiled"))
        assert compiled["elementwise"] < 0.5 * plain["elementwise"]
        assert compiled["matmul"] == plain["matmul"]
    assert table("small", figures).count("\n") == 6
