"""The tiny model of tests/trainer, and settings for two workers on this machine's CPU.

verl's package has a top-level `tests`, which hides ours. So shared fixtures are loaded by path.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from nrt.backends.verl.ray_cluster import choose_platform
from nrt.config import Config

if importlib.util.find_spec("verl") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # for the workers, which are other processes
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
    choose_platform(Config(device="cpu"))  # before a test file imports verl
    # For `steps` and `scripted`. Not without verl: then `verl` would be this folder.
    sys.path.append(str(Path(__file__).parents[1]))

_shared_file = Path(__file__).parents[1] / "trainer" / "conftest.py"
_spec = importlib.util.spec_from_file_location("shared", _shared_file)
assert _spec is not None
assert _spec.loader is not None
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)

model_dir, pairs_file = _shared.model_dir, _shared.pairs_file


@pytest.fixture(scope="session")
def settings(model_dir, pairs_file):
    """Settings of runs in which an update changes no weight and clips no gradient."""
    return {
        "model": str(model_dir),
        "steps": 3,
        "batch": 4,
        "traces": 8,
        "threads": 1,
        "max_trace_tokens": 6,
        "max_answer_tokens": 8,
        "max_prompt_tokens": 16,
        "device": "cpu",
        "data": {"train": str(pairs_file), "columns": {"source": "kind"}},
        "optimizer": {"lr": 1e-30, "betas": (0.0, 0.999), "max_grad_norm": 1e9},
        "log_traces": 0,
        "heldout": {"checker": "exact"},
    }
