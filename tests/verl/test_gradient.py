"""The cluster's scores and gradients are the local engine's, however rows are dealt out, cut and padded. Two real workers."""

# pyright: reportMissingImports=false
import random
from dataclasses import replace
from functools import partial

import pytest
import ray
import torch

from nrt.config import build_config
from nrt.data import trace_row
from nrt.engine.verl.batch import silent
from nrt.engine.verl.loss import worker_loss
from nrt.objective import METHODS
from nrt.rollout import ScriptedSampler
from nrt.training.cluster import prepare_cluster
from nrt.training.rollout import sampled_mask
from nrt.training.setup import prepare
from nrt.types import Role, Row

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]  # of what verl brings with it


@pytest.fixture(scope="module")
def local(settings):
    """(method, profile) → parts of the local engine, which scores as verl does: START keeps its probability inside traces."""

    def make(method="nrt-ws-neg-log-p", profile="recommended"):
        parts = prepare(build_config(settings, {"method": method, "profile": profile}))
        engine = parts.stepper.policy.engine
        engine.scorer = replace(engine.scorer, ban_start=False)
        return parts

    return make


@pytest.fixture(scope="module")
def cluster(settings, tmp_path_factory):
    parts = prepare_cluster(build_config(settings, {"engine": "verl", "gpus_per_node": 2}))
    with parts.stepper.policy.engine.running(tmp_path_factory.mktemp("run")):
        yield parts


@pytest.fixture
def scripted():
    """(parts) → its stepper with a sampler that says the same in every engine: traces that end, that stop otherwise, that are cut."""

    def script(end_id, other_stop, prompt, n):
        chance = random.Random(str(prompt))
        traces = [[chance.randrange(5, 20) for _ in range(6)] for _ in range(n)]
        cuts = [(chance.randrange(0, 5), (end_id, other_stop, None)[k % 3]) for k in range(n)]
        return [ids if stop is None else [*ids[:length], stop] for ids, (length, stop) in zip(traces, cuts, strict=True)]

    def make(parts):
        stepper = parts.stepper
        end_id = stepper.policy.markers.end_id
        policy = replace(stepper.policy, sampler=ScriptedSampler(partial(script, end_id, min(stepper.policy.stop_ids - {end_id}))))
        return replace(stepper, policy=policy, collector=replace(stepper.collector, policy=policy))

    return make


def test_the_first_gradient_of_a_step_is_the_local_one(local, cluster, scripted):
    here = local()
    one, many = scripted(here), scripted(cluster)
    mine, theirs = one.collect(here.draw, 4, seed=1), many.collect(cluster.draw, 4, seed=1)
    for a, b in zip(mine.groups, theirs.groups, strict=True):
        assert a.rows == b.rows
        torch.testing.assert_close(a.logp_KT, b.logp_KT, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat(a.entropy), torch.cat(b.entropy), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.advantage_K, b.advantage_K, atol=1e-4, rtol=1e-4)
    assert any(not group.credit.no_variance for group in mine.groups)
    assert mine.metrics.keys() == theirs.metrics.keys()
    assert theirs.metrics["reward/gain_initial"] == pytest.approx(mine.metrics["reward/gain_initial"], rel=1e-4)
    expected, stats = one.update(mine.groups), many.update(theirs.groups)
    for name in ("total", "trace", "answer", "format", "ratio_mean", "grad_norm"):
        assert getattr(stats, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-7), name
    assert (stats.tokens, stats.lr, stats.ratio_clipped) == (expected.tokens, expected.lr, 0.0)
    assert_close(gradients(cluster), local_gradients(here))


@pytest.mark.parametrize(
    ("name", "profile"), [*((name, "paper") for name in METHODS), ("nrt-gm", "recommended"), ("nrt-gm", "release"), ("jlb", "release")]
)
def test_every_method_and_profile_has_its_gradient(settings, local, cluster, name, profile):
    """Groups as the local engine samples and credits them; `rlpr-original` and `rlvr` on answers that the model wrote."""
    here = local(name, profile)
    if profile == "release":  # its markers are not those of the cluster's model
        here = replace(local(name), names=here.names, stepper=replace(local(name).stepper, method=here.stepper.method))
    state = here.stepper.method.memory.initial() if here.stepper.method.memory else None
    rollout = here.stepper.collect(here.draw, 4, seed=1, state=state)
    here.stepper.update(rollout.groups)
    rows, credits = [r for g in rollout.groups for r in g.rows], [c for g in rollout.groups for c in g.row_credits()]
    update(cluster, rows, credits, here.stepper.method)
    assert_close(gradients(cluster), local_gradients(here))


def test_weights_of_a_samplers_mismatch_travel_with_the_rows(local, cluster):
    """objective.importance_cap, with a sampler that was told to be off."""
    here = local("nrt-gm")
    method, engine = replace(here.stepper.method, importance_cap=1.5), here.stepper.policy.engine
    rollout = here.stepper.collect(here.draw, 4, seed=1)
    rows, credits = [r for g in rollout.groups for r in g.rows], [c for g in rollout.groups for c in g.row_credits()]
    off = [replace(c, sampler_logp_N=c.old_logp_N - torch.linspace(-1, 1, len(c.old_logp_N))) for c in credits]
    engine.train(rows, off, method, denominator=len(rows) * (6 + 8))
    found = update(cluster, rows, off, method)
    assert_close(found, local_gradients(here))
    with pytest.raises(AssertionError):
        assert_close(update(cluster, rows, credits, method), found)


def test_micro_batches_and_padding_do_not_matter(local, cluster):
    here = local()
    rollout = here.stepper.collect(here.draw, 4, seed=1)
    rows, credits = [r for g in rollout.groups for r in g.rows], [c for g in rollout.groups for c in g.row_credits()]
    method, trainer = here.stepper.method, cluster.stepper.policy.engine.trainer
    whole, tokens = update(cluster, rows, credits, method), trainer.tokens
    trainer.tokens = 1  # then each row is forwarded with as few others as verl allows
    try:
        assert_close(update(cluster, rows, credits, method), whole)
    finally:
        trainer.tokens = tokens
    long = Row(rows[0].prompt_ids, (5,) * 40, (Role.TRACE,) * 40, end_sampled=False)
    padded = [silent(long), *zip(rows, credits, strict=True)]  # every row beside it is padded to its width; 33 rows on two workers
    assert_close(update(cluster, [row for row, _ in padded], [credit for _, credit in padded], method), whole)
    assert_close(update(cluster, rows[::-1], credits[::-1], method), whole)


def test_samples_stop_by_id_and_are_the_models_own(cluster):
    """Their log-probabilities are the workers' scores; the same request gives the same samples."""
    policy, pairs = cluster.stepper.policy, cluster.draw(0, 3)
    groups = policy.traces(pairs, 4, seed=5)
    assert groups == policy.traces(pairs, 4, seed=5)
    assert groups != policy.traces(pairs, 4, seed=6)
    written = [(pair, trace) for pair, group in zip(pairs, groups, strict=True) for trace in group]
    rows = [trace_row(pair, trace, policy.markers) for pair, trace in written]
    for (logp, _), row, (_, trace) in zip(policy.score(rows), rows, written, strict=True):
        assert trace.n_sampled <= 6
        assert logp[sampled_mask(row)].tolist() == pytest.approx(trace.logps, abs=1e-5)


def update(cluster, rows, credits, method):
    """The gradient of one update by that method, whatever method the cluster began with."""
    trainer = cluster.stepper.policy.engine.trainer
    trainer.actor_rollout_wg.set_loss_fn(partial(worker_loss, method=method))
    taking_part = sum(set(row.tail_roles) != {Role.PROMPT} for row in rows)
    trainer.update(rows, credits, denominator=taking_part * (6 + 8))
    return gradients(cluster)


def gradients(cluster):
    """The last update's, whole, by name: AdamW's first moment, which with β₁ = 0 forgets all that was before."""

    def whole(worker):
        (actor,) = [own.actor for own in worker.worker_dict.values()]
        state = actor.engine.optimizer.state
        return {name: state[p]["exp_avg"].full_tensor() for name, p in actor.engine.module.named_parameters()}

    trainer = cluster.stepper.policy.engine.trainer
    return ray.get([worker.__ray_call__.remote(whole) for worker in trainer.actor_rollout_wg.workers])[0]


def local_gradients(parts):
    return {name: p.grad for name, p in parts.stepper.policy.engine.model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values())
    assert largest > 0
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * largest, name
