"""The cluster's scores and gradients equal the local engine's.

They do not depend on how rows are shared among workers, cut into micro-batches and padded. Two real
workers.
"""

# pyright: reportMissingImports=false
import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import ray
import torch
from scripted import ScriptedSampler  # pyright: ignore[reportMissingImports]
from steps import (  # pyright: ignore[reportMissingImports]
    collect,
    local_engine,
    record_gradient,
)

from nrt.backends.verl.batch import filler_row
from nrt.backends.verl.loss import worker_loss
from nrt.config import build_config
from nrt.data import trace_row
from nrt.objective import METHODS
from nrt.trainer.cluster_setup import prepare_cluster
from nrt.trainer.setup import prepare
from nrt.trainer.step import update as train_on
from nrt.types import Role, Row

# ignores the warnings of verl's dependencies
pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore:::(?!nrt).*")]


@pytest.fixture(scope="module")
def local(settings):
    """(method, profile) → parts of a run with the local engine, which scores as verl does.

    START keeps its probability inside traces.
    """

    def make(method="nrt-ws-neg-log-p", profile="recommended"):
        parts = prepare(build_config(settings, {"method": method, "profile": profile}))
        engine: Any = parts.learner.policy.engine
        engine.scorer = replace(engine.scorer, ban_start=False)
        return parts

    return make


@pytest.fixture(scope="module")
def cluster(settings, tmp_path_factory):
    parts = prepare_cluster(build_config(settings, {"engine": "verl", "gpus_per_node": 2}))
    with parts.learner.policy.engine.running(tmp_path_factory.mktemp("run")):
        yield parts


@pytest.fixture
def scripted():
    """(parts) → the learner with a sampler that returns the same traces in every engine.

    Some traces end with END, some with another stop token, some at the cap.
    """

    def script(end_id, other_stop, prompt, n):
        rng = random.Random(str(prompt))
        traces = [[rng.randrange(5, 20) for _ in range(6)] for _ in range(n)]
        ends = [(rng.randrange(0, 5), (end_id, other_stop, None)[k % 3]) for k in range(n)]
        samples = []
        for ids, (length, stop) in zip(traces, ends, strict=True):
            samples.append(ids if stop is None else [*ids[:length], stop])
        return samples

    def make(parts):
        learner = parts.learner
        end_id = learner.policy.markers.end_id
        other_stop = min(learner.policy.stop_ids - {end_id})
        sampler = ScriptedSampler(partial(script, end_id, other_stop))
        return replace(learner, policy=replace(learner.policy, sampler=sampler))

    return make


def test_the_first_gradient_of_a_step_is_the_local_one(local, cluster, scripted):
    local_parts = local()
    local_learner, cluster_learner = scripted(local_parts), scripted(cluster)
    expected = collect(local_learner, local_parts.draw, 4, seed=1)
    rollout = collect(cluster_learner, cluster.draw, 4, seed=1)
    for a, b in zip(expected.groups, rollout.groups, strict=True):
        assert a.rows == b.rows
        torch.testing.assert_close(a.logp_KT, b.logp_KT, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat(a.entropy), torch.cat(b.entropy), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.advantage_K, b.advantage_K, atol=1e-4, rtol=1e-4)
    assert any(group.credit and not group.credit.no_variance for group in expected.groups)
    assert expected.metrics.keys() == rollout.metrics.keys()
    gain = rollout.metrics["reward/gain_initial"]
    assert gain == pytest.approx(expected.metrics["reward/gain_initial"], rel=1e-4)
    expected_gradients = record_gradient(local_engine(local_parts))
    expected_stats = train_on(local_learner, expected.groups)
    stats = train_on(cluster_learner, rollout.groups)
    for name in ("total", "trace", "answer", "format", "ratio_mean", "grad_norm"):
        value = getattr(expected_stats, name)
        assert getattr(stats, name) == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert (stats.tokens, stats.lr) == (expected_stats.tokens, expected_stats.lr)
    assert stats.ratio_clipped == 0.0
    assert_close(gradients(cluster), expected_gradients)


METHODS_AND_PROFILES = [
    # engine=verl refuses methods with an advantage for each token
    *((name, "paper") for name, method in METHODS.items() if not method.token_advantages),
    ("nrt-gm", "recommended"),
    ("nrt-gm", "release"),
    ("jlb", "release"),
]


@pytest.mark.parametrize(("name", "profile"), METHODS_AND_PROFILES)
def test_gradient_of_every_method_and_profile(settings, local, cluster, name, profile):
    """The local engine samples and credits the groups.

    `rlpr-original`, `nover` and `rlvr` train on answers that the model sampled.
    """
    parts = local(name, profile)
    method = parts.learner.method
    if profile == "release":  # its markers are not those of the cluster's model
        paper = local(name)
        parts = replace(paper, names=parts.names, learner=replace(paper.learner, method=method))
    state = method.state_rule.initial() if method.state_rule else None
    rollout = collect(parts.learner, parts.draw, 4, seed=1, state=state)
    expected = record_gradient(local_engine(parts))
    train_on(parts.learner, rollout.groups)
    assert_close(update(cluster, *rows_and_credits(rollout), method), expected)


def test_weights_of_a_samplers_mismatch_reach_the_workers(local, cluster):
    """objective.importance_cap, with a sampler that reports wrong log-probabilities."""
    parts = local("nrt-gm")
    method = replace(parts.learner.method, importance_cap=1.5)
    rows, credits = rows_and_credits(collect(parts.learner, parts.draw, 4, seed=1))
    wrong = []
    for credit in credits:
        error_N = torch.linspace(-1, 1, len(credit.old_logp_N))
        wrong.append(replace(credit, sampler_logp_N=credit.old_logp_N - error_N))
    expected = record_gradient(local_engine(parts))
    parts.learner.policy.engine.train(rows, wrong, method, denominator=len(rows) * (6 + 8))
    gradient = update(cluster, rows, wrong, method)
    assert_close(gradient, expected)
    with pytest.raises(AssertionError):
        assert_close(update(cluster, rows, credits, method), gradient)


def test_micro_batches_and_padding_do_not_matter(local, cluster):
    parts = local()
    method = parts.learner.method
    rows, credits = rows_and_credits(collect(parts.learner, parts.draw, 4, seed=1))
    expected = update(cluster, rows, credits, method)
    trainer = cluster.learner.policy.engine.trainer
    tokens = trainer.tokens
    trainer.tokens = 1  # then each row is forwarded with as few others as verl allows
    try:
        assert_close(update(cluster, rows, credits, method), expected)
    finally:
        trainer.tokens = tokens
    # with a long row, all rows of its micro-batch are padded to its width; 33 rows on two workers
    long_row = Row(rows[0].prompt_ids, (5,) * 40, (Role.TRACE,) * 40, end_sampled=False)
    filler, filler_credit = filler_row(long_row)
    assert_close(update(cluster, [filler, *rows], [filler_credit, *credits], method), expected)
    assert_close(update(cluster, rows[::-1], credits[::-1], method), expected)


def test_samples_stop_by_id_and_are_the_models_own(cluster):
    """The samples' log-probabilities are the workers' scores; equal requests give equal samples."""
    policy, pairs = cluster.learner.policy, cluster.draw(0, 3)
    groups = policy.traces(pairs, 4, seed=5)
    assert groups == policy.traces(pairs, 4, seed=5)
    assert groups != policy.traces(pairs, 4, seed=6)
    traces, rows = [], []
    for pair, group in zip(pairs, groups, strict=True):
        traces += group
        rows += [trace_row(pair, trace, policy.markers) for trace in group]
    for (logp, _), row, trace in zip(policy.score(rows), rows, traces, strict=True):
        assert trace.n_sampled <= 6
        assert logp[row.sampled_mask].tolist() == pytest.approx(trace.logps, abs=1e-5)


def rows_and_credits(rollout):
    rows = [row for group in rollout.groups for row in group.rows]
    credits = [credit for group in rollout.groups for credit in group.row_credits()]
    return rows, credits


def update(cluster, rows, credits, method):
    """Return the gradient of one update by `method`, whatever method the cluster started with."""
    trainer = cluster.learner.policy.engine.trainer
    trainer.actor_rollout_wg.set_loss_fn(partial(worker_loss, method=method))
    rows_in_loss = sum(set(row.tail_roles) != {Role.PROMPT} for row in rows)
    trainer.update(rows, credits, denominator=rows_in_loss * (6 + 8))
    return gradients(cluster)


def gradients(cluster):
    """Return the full gradients of the last update, by name.

    With β₁ = 0, AdamW's first moment is the last gradient.
    """

    def first_moments(worker):
        (actor,) = [part.actor for part in worker.worker_dict.values()]
        state = actor.engine.optimizer.state
        parameters = actor.engine.module.named_parameters()
        return {name: state[p]["exp_avg"].full_tensor() for name, p in parameters}

    workers = cluster.learner.policy.engine.trainer.actor_rollout_wg.workers
    return ray.get([worker.__ray_call__.remote(first_moments) for worker in workers])[0]


def assert_close(gradients, expected):
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * largest, name
