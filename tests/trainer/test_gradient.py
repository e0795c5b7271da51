"""The gradient of a batch does not depend on how it is computed."""

import importlib.util
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from benchmarks import term_gradients
from nrt.objective import METHODS
from nrt.trainer.groups import Rollout
from nrt.trainer.rollout_json import rollout_from_json, rollout_to_json
from nrt.trainer.setup import prepare
from nrt.trainer.step import update
from tests.steps import collect, local_engine, record_gradient, step


@pytest.fixture
def rolled(make_config):
    """(learner, groups): the tiny model and one rollout of 4 prompts × 8 traces."""

    def roll(**settings):
        parts = prepare(make_config(traces=8, **settings))
        rollout = collect(
            parts.learner, lambda offset, n: parts.data.pairs[offset : offset + n], 4, seed=1
        )
        assert any(not g.credit.no_variance for g in rollout.groups if g.credit)
        return parts, rollout

    return roll


def gradient(learner, groups, tokens_per_batch=10**6):
    engine = local_engine(learner)
    engine.budget.tokens = tokens_per_batch
    rows = [row for group in groups for row in group.rows]
    credits = [credit for group in groups for credit in group.row_credits()]
    sums = engine.compute_gradient(
        rows, credits, learner.method, denominator=len(rows) * learner.loss_tokens
    )
    return torch.cat(
        [p.grad.flatten().clone() for p in engine.model.parameters() if p.grad is not None]
    ), sums


def assert_close(a, b):
    assert a.abs().max() > 0
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["paper", "recommended"])
def test_accumulation_1x8_is_8x1(rolled, method, profile):
    if method == "sft":
        parts, rollout = rolled(method="nrt-gm")
    else:  # an untrained model is never right, so rlvr gets a checker that is sometimes pleased
        parts, rollout = rolled(
            method=method,
            profile=profile,
            **{"heldout.checker": "tests.trainer.test_methods:has_even_length"},
        )
    whole, sums = gradient(parts.learner, rollout.groups)
    single, single_sums = gradient(parts.learner, rollout.groups, tokens_per_batch=1)
    assert_close(whole, single)
    assert astuple(single_sums) == pytest.approx(astuple(sums), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        "nrt-ws-neg-log-p",
        "nrt-gm",
        "jlb",
        "nrt-learned",
        "verifree-original",
        "dro",
        "jepo",
        "latro",
        "rlvr",
        "nover",
        "opsd",
        "sdft",
    ],
)
def test_one_pass_is_two(make_config, method):
    """One forward for reward, credit and loss leaves the weights, the rollout and the metrics that scoring first leaves."""
    left = []
    for tokens in (10**6, 40):  # in 40 tokens no group is whole
        parts = prepare(
            make_config(
                traces=8,
                method=method,
                tokens_per_batch=tokens,
                profile="paper",
                **{"heldout.checker": "tests.trainer.test_methods:has_even_length"},
            )
        )
        memory = parts.learner.method.state_rule
        state = memory.initial() if memory else None
        assert parts.learner.fused
        pending = step(parts.learner, parts.draw, 4, seed=1, state=state)
        rollout, (stats,) = pending.rollout, pending.updates
        left.append((parts, rollout, stats))
    (one, rollout, stats), (two, expected, expected_stats) = left
    assert local_engine(one).keeps_groups_whole([[*g.rows] for g in rollout.groups])
    assert not local_engine(two).keeps_groups_whole([[*g.rows] for g in rollout.groups])
    assert stats.ratio_mean == pytest.approx(1, abs=1e-6)
    assert any(not g.credit.no_variance for g in rollout.groups if g.credit)
    for a, b in zip(rollout.groups, expected.groups, strict=True):
        assert a.rows == b.rows
        torch.testing.assert_close(a.advantage_K, b.advantage_K, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.logp_KT, b.logp_KT, atol=1e-5, rtol=1e-5)
    assert rollout.metrics.keys() == expected.metrics.keys()
    assert stats.grad_norm == pytest.approx(expected_stats.grad_norm, rel=1e-4)
    assert (rollout.statistics is None) == (memory is None)


def test_one_pass_has_the_gradient_of_collect_and_update(rolled):
    parts, rollout = rolled()
    expected, _ = gradient(parts.learner, rollout.groups)
    parts, _ = rolled()
    engine = local_engine(parts)
    engine.max_grad_norm = 1e9  # the gradient stays as it came
    gradients = record_gradient(engine)
    step(parts.learner, lambda offset, n: parts.data.pairs[offset : offset + n], 4, seed=1)
    assert_close(torch.cat([gradient.flatten() for gradient in gradients.values()]), expected)


@pytest.mark.parametrize("method", ["nrt-ws-neg-log-p", "jlb"])
def test_the_first_of_two_updates_scores_its_own_rows(make_config, method):
    """The rows of the second are scored before it; all numbers are as if all were scored first."""
    results = []
    for fused in (True, False):
        parts = prepare(make_config(traces=8, method=method, updates_per_rollout=2))
        local_engine(parts).can_fuse = fused
        scored = []
        policy = parts.learner.policy
        score = policy.engine.score

        def count(rows, *, initial=False, score=score, scored=scored):
            if not initial:
                scored.append(len(rows))
            return score(rows, initial=initial)

        policy.engine.score = count
        pending = step(parts.learner, parts.draw, 4, seed=1)
        assert scored == [2 * 9 if fused else 4 * 9], "eight traces and the null trace a prompt"
        weights = [p.detach().clone() for p in local_engine(parts).model.parameters()]
        results.append((pending, weights))
    (pending, weights), (expected, expected_weights) = results
    assert pending.rollout.metrics.keys() == expected.rollout.metrics.keys()
    for a, b in zip(pending.rollout.groups, expected.rollout.groups, strict=True):
        assert a.rows == b.rows
        torch.testing.assert_close(a.logp_KT, b.logp_KT, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.advantage_K, b.advantage_K, atol=1e-4, rtol=1e-4)
    for a, b in zip(pending.updates, expected.updates, strict=True):
        assert astuple(a) == pytest.approx(astuple(b), rel=1e-3, abs=1e-6)
    for a, b in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_update_frees_the_gradient(rolled):
    """Whose memory the next rollout needs."""
    parts, rollout = rolled()
    update(parts.learner, rollout.groups)
    assert all(p.grad is None for p in local_engine(parts).weights.masters.values())


@pytest.mark.parametrize("method", METHODS)
def test_which_methods_go_in_one_pass(make_config, method):
    parts = prepare(make_config(method=method, **{"heldout.checker": "exact"}))
    assert parts.learner.fused == (method not in ("sft", "rlpr-original"))


def test_group_order_leaves_it_unchanged(rolled):
    parts, rollout = rolled()
    a, _ = gradient(parts.learner, rollout.groups)
    b, _ = gradient(parts.learner, rollout.groups[::-1])
    assert_close(a, b)


def test_padding_leaves_it_unchanged(rolled):
    """A group's gradient is the same beside a much longer neighbour of weight zero as alone."""
    parts, rollout = rolled()
    alone, _ = gradient(parts.learner, rollout.groups[:1])
    groups = sorted(rollout.groups, key=lambda g: -max(len(row.ids) for row in g.rows))
    both, _ = gradient(parts.learner, [rollout.groups[0], *groups[:1]])
    other, _ = gradient(parts.learner, groups[:1])
    assert_close(both, (alone + other) / 2)


def test_on_policy_ratio_is_one(rolled):
    parts, rollout = rolled()
    _, sums = gradient(parts.learner, rollout.groups)
    assert sums.ratio == pytest.approx(sums.sampled, rel=1e-5)
    assert sums.clipped == 0


def test_a_rollout_survives_json_exactly(rolled):
    parts, rollout = rolled(method="nrt-ws-inv-p")
    pairs = [group.pair for group in rollout.groups]
    again = rollout_from_json(
        rollout_to_json(rollout), pairs, parts.learner.method, parts.learner.policy.markers
    )
    assert isinstance(again, Rollout)
    for a, b in zip(rollout.groups, again.groups, strict=True):
        assert torch.equal(a.advantage_K, b.advantage_K)
        assert torch.equal(a.logp_KT, b.logp_KT)
        assert a.rows == b.rows
    assert again.metrics == rollout.metrics


def test_the_flat_example_has_the_same_gradient(rolled):
    """examples/nrt_loop.py, on the very traces that the package sampled (values differ: A·log π there, A·ρ here)."""
    spec = importlib.util.spec_from_file_location(
        "nrt_loop", Path(__file__).parents[2] / "examples" / "nrt_loop.py"
    )
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    parts, rollout = rolled()
    learner = parts.learner
    ours, _ = gradient(learner, rollout.groups)
    batch = [
        (
            list(g.pair.prompt_ids),
            list(g.pair.answer_ids),
            [[*t.ids, *([learner.policy.markers.end_id] if t.finished else [])] for t in g.traces],
        )
        for g in rollout.groups
    ]
    vars(example).update(K=8, N=learner.loss_tokens)
    model = local_engine(learner).model
    model.zero_grad()
    markers = learner.policy.markers
    loss, gain = example.nrt_loss(
        model, batch, markers.start_id, markers.end_id, learner.policy.stop_ids
    )
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_close(ours, theirs)
    assert gain == pytest.approx(rollout.metrics["reward/gain"], rel=1e-4)


def test_gradients_of_the_terms_add_up(rolled):
    parts, rollout = rolled(method="nrt-ws-neg-log-p")
    groups = term_gradients.roll_out(parts.learner, parts.data.pairs[:4], seed=1)
    assert [g.advantage_K.tolist() for g in groups] == [
        g.advantage_K.tolist() for g in rollout.groups
    ]
    terms = term_gradients.term_gradients(parts, groups)
    whole, _ = gradient(parts.learner, rollout.groups)
    assert_close(sum(terms.values()), whole)
    assert all(term.norm() > 0 for term in terms.values())
