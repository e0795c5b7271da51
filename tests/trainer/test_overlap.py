"""One-step-off: traces sampled during the update before, with the sampler's log-probabilities as π_old."""

import json
import time
from contextlib import nullcontext

import pytest
import torch

import nrt
from nrt.distributed import SINGLE_PROCESS
from nrt.engine.samplers import ShardedSampler
from nrt.errors import InputError, Interrupted
from nrt.rollout import HFSampler, PrefetchSampler, Request
from nrt.trainer.rollout_json import rollout_from_json, rollout_to_json
from nrt.trainer.setup import prepare
from tests.steps import collect, local_engine
from tests.tiny import PAD, tiny_model
from tests.trainer.test_several import assert_like, in_both, run
from tests.trainer.test_train import InterruptAt, assert_same_run

REQUEST = {"n": 2, "stop_ids": frozenset({2}), "cap": 9}


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter).cumsum(-1).sin())


def test_what_was_started_is_sampled_under_the_weights_of_then():
    trained, copy = tiny_model(), tiny_model()
    ahead = PrefetchSampler(
        ShardedSampler(HFSampler(copy, PAD), SINGLE_PROCESS, nullcontext, False)
    )
    now = HFSampler(trained, PAD)
    prompts = [(3, 4), (5,)]
    before = now.sample(Request(prompts, seed=1, **REQUEST))
    ahead.start(Request(prompts, seed=1, **REQUEST))
    move(trained)
    ahead.load_weights(trained.named_parameters())
    assert ahead.sample(Request(prompts, seed=1, **REQUEST)) == before
    after = now.sample(Request(prompts, seed=1, **REQUEST))
    assert after != before
    assert (
        ahead.sample(Request(prompts, seed=1, **REQUEST)) == after
    )  # asked for once only; then the new weights


def test_the_second_rollout_is_one_step_behind(make_config, tmp_path):
    on, off = (
        nrt.train(make_config(run=str(tmp_path / str(overlap)), overlap=overlap, log_traces=4))
        for overlap in (True, False)
    )
    first, second = ([m for m in run.metrics() if m["step"] in (1, 2)] for run in (on, off))
    assert first[0]["reward/mean"] == second[0]["reward/mean"]
    assert first[0]["ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert first[1]["ratio/mean"] != pytest.approx(1, abs=1e-4)
    assert first[1]["sampler/logp_gap"] > 1e-3 > second[1]["sampler/logp_gap"]


def test_the_wait_for_traces_is_time_of_the_rollout(make_config, monkeypatch):
    """When the weights are pushed, the samples under way have been waited for."""
    waited, load = [], PrefetchSampler.load_weights

    def load_weights(self, *arguments):
        waited.append(self._started is None or self._started[1].done())
        load(self, *arguments)

    monkeypatch.setattr(PrefetchSampler, "load_weights", load_weights)
    sample_share = ShardedSampler.sample_share

    def slow(self, request):
        time.sleep(0.3)
        return sample_share(self, request)

    monkeypatch.setattr(ShardedSampler, "sample_share", slow)
    metrics = nrt.train(make_config(overlap=True, eval_every=0, save_every=0)).metrics()
    assert len(waited) >= 3
    assert all(waited)
    assert metrics[-1]["time/rollout"] > 0.1


def behind(make_config):
    """Parts whose sampler holds other weights than the engine, and a rollout."""
    parts = prepare(make_config(overlap=True, traces=8))
    sampler = parts.learner.policy.sampler
    assert isinstance(sampler, PrefetchSampler)
    request = parts.learner.policy.trace_request(parts.draw(0, 4), 8, seed=1)
    sampler.load_weights(local_engine(parts).model.named_parameters())
    sampler.start(request)
    move(local_engine(parts).model)
    return parts, collect(parts.learner, parts.draw, 4, seed=1)


def test_the_samplers_log_probabilities_are_the_old_ones(make_config):
    parts, rollout = behind(make_config)
    engine, policy = local_engine(parts), parts.learner.policy
    for group in rollout.groups:
        for row, trace, credit, (logp, _) in zip(
            group.rows, group.traces, group.row_credits(), policy.score(group.rows), strict=True
        ):
            acted = row.sampled_mask
            assert credit.old_logp_N[acted].tolist() == pytest.approx(trace.logps)
            torch.testing.assert_close(
                credit.old_logp_N[~acted], logp[~acted], atol=1e-5, rtol=1e-5
            )
            if acted.any():  # an end token alone leaves no action
                assert (credit.old_logp_N[acted] - logp[acted]).abs().max() > 1e-2
        torch.testing.assert_close(
            group.logp_KT[0],
            policy.score(group.rows)[0][0][-group.logp_KT.shape[1] :],
            atol=1e-5,
            rtol=1e-5,
        )
    assert engine.scorer is not None


def test_a_rollout_behind_survives_json(make_config):
    parts, rollout = behind(make_config)
    pairs = [group.pair for group in rollout.groups]
    markers = parts.learner.policy.markers
    again = rollout_from_json(rollout_to_json(rollout), pairs, parts.learner.method, markers)
    for a, b in zip(rollout.groups, again.groups, strict=True):
        for one, other in zip(a.row_credits(), b.row_credits(), strict=True):
            assert torch.equal(one.old_logp_N, other.old_logp_N)


@pytest.mark.parametrize("updates", [1, 2])
def test_interrupted_anywhere_and_resumed(make_config, tmp_path, updates):
    """What was sampled ahead is in the checkpoint."""
    settings = {"overlap": True, "updates_per_rollout": updates, "save_every": 0, "steps": 4}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    for n in range(2, 8 if updates == 1 else 10):  # the phases before the last step
        run = tmp_path / f"cut-{n}"
        with pytest.raises(Interrupted):
            nrt.train(make_config(run=str(run), **settings), listener=InterruptAt(n))
        assert_same_run(whole, nrt.train(make_config(run=str(run), resume=str(run), **settings)))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "settings", [{"batch": 3}, {"batch": 1}, {"batch": 6, "updates_per_rollout": 2}], ids=str
)
def test_in_two_processes_as_in_one(gang, make_config, tmp_path, settings, parallel):
    """Also with a process that has no prompt to sample for."""
    settings = {"overlap": True, "log_traces": 9, "heldout.rows": 5, **settings}
    one = nrt.load_run(run(make_config(run=str(tmp_path / "one"), **settings)))
    assert one.metrics()[2]["sampler/logp_gap"] > 1e-3  # behind: of the second rollout on
    two = in_both(gang, make_config(run=str(tmp_path / "two"), parallel=parallel, **settings))
    assert_like(two, one)


@pytest.mark.parametrize(("n", "parallel"), [(3, "ddp"), (5, "ddp"), (5, "fsdp")])
def test_several_interrupted_and_resumed(gang, make_config, tmp_path, n, parallel):
    """The checkpoint has what all processes sampled ahead, so one process can go on with it."""
    settings = {"overlap": True, "save_every": 0, "batch": 3, "parallel": parallel}
    settings |= {"log_traces": 9, "updates_per_rollout": 1}
    whole = in_both(gang, make_config(run=str(tmp_path / "whole"), **settings))
    for name, train in {"two": lambda config: in_both(gang, config), "one": run}.items():
        cut = str(tmp_path / name)
        assert in_both(gang, make_config(run=cut, **settings), n) == "interrupted"
        (checkpoint,) = nrt.load_run(cut).checkpoints()
        ahead = json.loads((checkpoint / "state.json").read_text())["ahead"]
        assert len(ahead["samples"]) == 3
        resumed = train(make_config(run=cut, resume=cut, **settings))
        if name == "two" and parallel == "ddp":
            assert_same_run(whole, resumed)
        else:
            assert_like(nrt.load_run(resumed) if name == "one" else resumed, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sft"}, "which sft does not allow"),
        ({"method": "rlvr"}, "which rlvr does not allow"),
        ({"method": "rlpr-original", "profile": "paper"}, "which rlpr-original does not allow"),
        ({"data.difficulty": {"pool": 2}}, "turn one of them off"),
    ],
)
def test_where_it_cannot_be(make_config, settings, message):
    with pytest.raises(InputError, match=message):
        prepare(make_config(overlap=True, **settings))
