"""Runs whose traces come from a rollout server over HTTP: here of a tiny model in transformers; tests/vllm has the real vLLM."""

from __future__ import annotations

import pytest
import torch

import nrt
from nrt.config import MarkersConfig
from nrt.errors import InputError, Interrupted
from nrt.models import add_markers, load_model
from nrt.rollout import RemoteSampler
from nrt.trainer.setup import prepare
from tests.rollout.test_remote import served
from tests.steps import collect, local_engine
from tests.trainer.test_several import assert_like, in_both
from tests.trainer.test_train import InterruptAt, assert_same_run


@pytest.fixture
def url(model_dir):
    """A server of the model's shape with other weights: what it samples from must have been pushed."""
    model, tokenizer = load_model(str(model_dir), dtype=torch.float32, device="cpu")
    add_markers(model, tokenizer, MarkersConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    with served(model) as address:
        yield address


@pytest.fixture
def config_of(make_config, url):
    return lambda **settings: make_config(
        **{"sampler": "vllm", "vllm": {"urls": (url,)}, **settings}
    )


@pytest.mark.parametrize("updates", [1, 2])
def test_a_run_and_its_versions(config_of, updates):
    run = nrt.train(config_of(updates_per_rollout=updates, steps=4))
    assert [trace["version"] for group in run.traces() for trace in group["traces"]] == [
        updates * step for step in range(4) for _ in range(3)
    ]
    for record in run.metrics()[1:]:
        assert record["sampler/logp_gap_max"] < 1e-4
        assert record["sampler/behind"] == 0
        assert record["time/push"] > 0


def test_merged_adapters_are_what_is_pushed(config_of):
    run = nrt.train(config_of(**{"lora.rank": 2, "steps": 4}))
    assert [group["traces"][0]["version"] for group in run.traces()] == [0, 1, 2, 3]
    assert max(record["sampler/logp_gap_max"] for record in run.metrics()[1:]) < 1e-4


def test_interrupted_and_resumed(config_of, tmp_path):
    whole = nrt.train(config_of(run=str(tmp_path / "whole"), updates_per_rollout=2, steps=4))
    cut = {"run": str(tmp_path / "cut"), "updates_per_rollout": 2, "steps": 4}
    with pytest.raises(Interrupted):
        nrt.train(config_of(**cut), listener=InterruptAt(5))
    assert_same_run(whole, nrt.train(config_of(**cut, resume=cut["run"])))


def test_sampled_ahead(config_of, tmp_path):
    settings = {"overlap": True, "steps": 4, "save_every": 0}
    whole = nrt.train(config_of(run=str(tmp_path / "whole"), **settings))
    assert [group["traces"][0]["version"] for group in whole.traces()] == [0, 0, 1, 2]
    cut = str(tmp_path / "cut")
    with pytest.raises(Interrupted):
        nrt.train(config_of(run=cut, **settings), listener=InterruptAt(4))
    assert_same_run(whole, nrt.train(config_of(run=cut, resume=cut, **settings)))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_have_one_that_speaks_to_the_server(
    gang, config_of, tmp_path, parallel, overlap
):
    one = nrt.train(config_of(run=str(tmp_path / "one"), overlap=overlap))
    config = config_of(run=str(tmp_path / "two"), parallel=parallel, overlap=overlap)
    assert_like(in_both(gang, config), one)


@pytest.mark.parametrize("strict", [True, False])
def test_other_weights_than_claimed(config_of, url, strict):
    parts = prepare(config_of(vllm={"urls": (url,), "strict": strict}))
    policy = parts.learner.policy
    policy.push_weights()
    thief = (
        (name, weight + 0.05 * torch.randn_like(weight))
        for name, weight in local_engine(parts).model.named_parameters()
    )
    RemoteSampler([url]).load_weights(thief, 0)
    if strict:
        with pytest.raises(
            nrt.errors.RunError, match="another trainer pushed, this run pushed version 0"
        ):
            collect(parts.learner, parts.draw, 4, seed=1)
        return
    rollout = collect(parts.learner, parts.draw, 4, seed=1)
    assert rollout.metrics["sampler/behind"] == 1
    for group in rollout.groups:
        for credit, trace, scored in zip(
            group.row_credits(), group.traces, group.logp, strict=True
        ):
            acted = slice(1, 1 + trace.n_sampled)  # after START
            assert credit.old_logp_N[acted].tolist() == pytest.approx(trace.logps)
            if trace.n_sampled:
                assert (credit.old_logp_N[acted] - scored[acted]).abs().max() > 1e-3


def test_a_server_that_is_not_there(make_config):
    with pytest.raises(nrt.errors.RunError, match="did not answer for 0 s"):
        nrt.train(make_config(sampler="vllm", vllm={"urls": ("http://127.0.0.1:9",), "wait": 0.0}))
    with pytest.raises(InputError, match="not the address of a server"):
        nrt.train(make_config(sampler="vllm", vllm={"urls": ("127.0.0.1:9",)}))
