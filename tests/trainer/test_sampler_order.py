"""The order in which a run pushes weights, samples, lets vLLM sleep, and computes.

The trainer needs a GPU's memory for whatever it computes, so vLLM must sleep by then; and it must
have the weights before it samples. A stand-in with vLLM's interface samples, since vLLM itself can
sleep on GPUs only.
"""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from nrt.engine.local import LocalEngine
from nrt.rollout import HFSampler
from nrt.rollout import vllm as vllm_module
from nrt.trainer import train

COMPUTES = ("score", "score_and_train", "train")
"""Methods of the engine that run the trainer's model."""


class StandIn(HFSampler):
    """Samples as vLLM does: with its own copy of the weights, awake from the start.

    It refuses what would fail, or not fit, on a GPU.
    """

    events: list[str] = []  # noqa: RUF012 - of the only run of a test

    def __init__(self, folder, *, rows, **settings):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        super().__init__(model, pad_id=0, max_rows=rows)
        self.events[:] = ["start"]

    def load_weights(self, weights, version=None):
        self.events.append("push")
        assert iter(weights) is weights, "all tensors at once may be as large as the model"
        super().load_weights(weights, version)

    def sample(self, request):
        assert self.events[-1] in ("push", "sample"), self.events
        self.events.append("sample")
        return super().sample(request)

    def sleep(self):
        self.events.append("sleep")

    def close(self): ...


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setattr(vllm_module, "VLLMSampler", StandIn)
    monkeypatch.setattr(vllm_module, "check_installed", lambda: None)
    for name in COMPUTES:
        monkeypatch.setattr(LocalEngine, name, recorded(getattr(LocalEngine, name)))
    return StandIn.events


def recorded(method):
    def call(*arguments, **keywords):
        assert StandIn.events[-1] in ("sleep", "compute"), StandIn.events
        StandIn.events.append("compute")
        return method(*arguments, **keywords)

    return call


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"updates_per_rollout": 2},
        {"method": "nrt-ws-neg-log-p", "heldout.swapped": True},
        {"method": "rlpr-original"},  # samples answers too
        {"data.difficulty.pool": 2},  # scores before it samples
        {"lora.rank": 2},
    ],
    ids=lambda settings: " ".join(settings) or "default",
)
def test_vllm_sleeps_while_the_trainer_computes(make_config, events, settings):
    train(make_config(sampler="vllm", steps=2, eval_every=1, **settings))
    assert events[:4] == ["start", "sleep", "push", "sample"]
    assert events.count("push") == 1 + 3 + 2  # the comparison of samplers, evaluations, steps
    assert events[-1] == "compute"
