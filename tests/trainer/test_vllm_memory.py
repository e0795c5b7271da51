"""vLLM's share of a GPU: what the trainer leaves, at most what vLLM can use."""

from __future__ import annotations

import pytest
import torch

from nrt.plan import PlanRequest, accelerator, make_plan
from nrt.plan.memory_parts import VllmMemory
from nrt.rollout import vllm as vllm_module
from nrt.rollout.vllm_memory import SPARE_BYTES, VLLM_TOKENS, vllm_memory_share, vllm_needed_bytes
from nrt.trainer.samplers import start_vllm
from nrt.trainer.setup import prepare
from tests.steps import local_engine
from tests.tiny import tiny_model

GIB = 2**30


def test_the_share_is_what_is_left_or_what_is_needed():
    """80 GiB, 93 % of them usable, and a trainer with 39: 35.4 GiB are left."""
    gpu, trainer = 80 * GIB, 39 * GIB
    assert vllm_memory_share(trainer, gpu, sleeps=True, needed=50 * GIB) == 0.44
    assert vllm_memory_share(trainer, gpu, sleeps=False, needed=50 * GIB) == 0.22
    assert vllm_memory_share(trainer, gpu, sleeps=True, needed=20 * GIB) == 0.25
    assert vllm_memory_share(trainer, gpu, sleeps=False, needed=20 * GIB) == 0.22
    assert vllm_memory_share(trainer, gpu, sleeps=True, needed=20 * GIB + 1) == 0.26


@pytest.mark.parametrize(("sampler_rows", "rows"), [(8, 8), (512, 12)])
def test_needed_bytes_by_hand(make_config, sampler_rows, rows):
    """Two layers, two heads of 8 numbers for keys and values: 64 numbers a token."""
    caps = {
        "max_prompt_tokens": 16,
        "max_trace_tokens": 5,
        "max_answer_tokens": 10,
    }  # and 2 markers
    config = make_config(traces=4, sampler_rows=sampler_rows, **caps)
    needed = vllm_needed_bytes(tiny_model().config, config, weights=1000, width=2, prompts=3)
    keys_and_values = rows * 48 * 64 * 2  # 33 tokens: three blocks of 16
    activations = 2 * VLLM_TOKENS * (2 * 48 + 4 * 32)
    logits = 8 * rows * 41
    assert needed == 1000 + keys_and_values + activations + logits + SPARE_BYTES


def test_vllm_starts_with_the_share_of_the_plan(make_config, monkeypatch):
    config = make_config(device="cpu")
    engine = local_engine(prepare(config))
    received = {}

    class Recorder:
        def __init__(self, folder, **settings):
            received.update(settings)

        def close(self): ...

        def sleep(self): ...

    monkeypatch.setattr(vllm_module, "VLLMSampler", Recorder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * GIB, 80 * GIB))
    config = make_config(sampler="vllm", dtype="float32")
    start_vllm(engine, config)
    assert received["memory"] == 0.02  # 1.01 GiB, of 73 that are free
    assert vllm_module._memory_settings(0.02) == {"gpu_memory_utilization": 0.02}
    rollout = make_plan(PlanRequest(config, accelerator("h100", 80))).memory.rollout
    assert isinstance(rollout, VllmMemory)
    assert rollout.share == 0.02
