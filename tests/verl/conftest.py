"""The tiny model of tests/training, and a cluster of two workers on this machine's CPU, started once for all tests of a module.

verl's own package brings a top-level `tests`, which hides ours: what is shared is loaded by its path.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from nrt.config import Config
from nrt.engine.verl.engine import choose_platform

if importlib.util.find_spec("verl") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")  # workers are processes of their own
    choose_platform(Config(device="cpu"))  # before a test file imports verl

_spec = importlib.util.spec_from_file_location("shared", Path(__file__).parents[1] / "training" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)

model_dir, pairs_file = _shared.model_dir, _shared.pairs_file


@pytest.fixture(scope="session")
def settings(model_dir, pairs_file):
    """Of runs in which an update leaves the weights as they are, and the gradient unclipped."""
    return {
        "model": str(model_dir), "steps": 3, "batch": 4, "traces": 8, "threads": 1,
        "max_trace_tokens": 6, "max_answer_tokens": 8, "max_prompt_tokens": 16,
        "device": "cpu", "data": {"train": str(pairs_file), "columns": {"source": "kind"}},
        "optimizer": {"lr": 1e-30, "betas": (0.0, 0.999), "max_grad_norm": 1e9}, "log_traces": 0, "heldout": {"checker": "exact"},
    }  # fmt: skip
