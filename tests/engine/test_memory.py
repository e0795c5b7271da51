"""tokens_per_batch=auto on a CPU: numbers by hand, and the bytes that autograd keeps."""

from __future__ import annotations

import pytest
import torch

from nrt.config import AUTO_TOKENS_PER_BATCH
from nrt.engine import memory
from nrt.engine.memory import auto_tokens
from nrt.scoring import PaddedScorer
from nrt.system.environment import machine_memory
from tests.tiny import ARCHITECTURES, random_rows, tiny_model

CPU = torch.device("cpu")


def bytes_for_backward(model) -> float:
    """Return the bytes a token that a forward of padded rows keeps for its backward.

    Weights and the head's tiles do not count.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = random_rows(0, [(6, 26)] * 32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = PaddedScorer(0)(model, rows)
    assert scores.logp_N.requires_grad
    return sum(kept.values()) / (32 * 32)


def test_by_hand(monkeypatch):
    """2 layers of 16·32 + 4·64 = 768 numbers of 4 bytes are 6,144 bytes a token.

    A quarter of 64 MiB holds 2,730 such tokens.
    """
    model = tiny_model(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    monkeypatch.setattr(memory, "machine_memory", lambda: 64 << 20)
    assert auto_tokens(model, CPU) == 2730 // 256 * 256
    recomputed = (64 << 20) // 4 // ((2 * 32 + 768) * 4) // 256 * 256
    assert auto_tokens(model, CPU, recompute=True) == recomputed
    # on a GPU, running out of memory raises an error, and the engine halves the micro-batches
    assert auto_tokens(model, torch.device("cuda")) == AUTO_TOKENS_PER_BATCH
    monkeypatch.setattr(memory, "machine_memory", lambda: 1 << 20)
    assert auto_tokens(model, CPU) == 1024
    monkeypatch.setattr(memory, "machine_memory", lambda: 1 << 40)
    assert auto_tokens(model, CPU) == AUTO_TOKENS_PER_BATCH


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if "moe" not in name])
def test_no_architecture_keeps_more_than_estimated(architecture, monkeypatch):
    model = tiny_model(architecture)
    monkeypatch.setattr(memory, "AUTO_TOKENS_PER_BATCH", 10**9)
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * 256 * 1_000_000)
    estimated = 256 * 1_000_000 / auto_tokens(model, CPU)
    # in so small a model, a layer's attention and the head keep as much as the vectors do
    assert bytes_for_backward(model) < 2 * estimated


def test_this_machine_has_more_than_a_gibibyte():
    assert machine_memory() > 1 << 30
