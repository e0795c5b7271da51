"""The expectation of the estimator equals the gradient of the enumerated objective."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nrt.data import Markers, hinted_row
from nrt.objective import (
    METHODS,
    REWARDS,
    GroupFacts,
    Method,
    RowCredit,
    group_credit,
    nrt_loss,
    streams,
)
from nrt.scoring import PaddedScorer
from nrt.types import Pair
from tests.lab.exact import all_samples, enumerate_traces

START, END, EOS = 1, 2, 3
MARKERS = Markers(START, END)
STOPS = frozenset({END, EOS})
PAIR = Pair(example=None, prompt_ids=(4, 0), answer_ids=(5, 0, EOS))  # type: ignore[arg-type]
RAW = Method(
    "raw", REWARDS["prob"], clip=False, centre=None, scale=None, ratio="none", format_coef=0.0
)


BASE_T = torch.zeros(3)


def tiny_config():
    return LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).double().eval()


def gradient(model, scalar):
    gradients = torch.autograd.grad(scalar, list(model.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def group_loss(method, enumeration, indices, log_ratios=None):
    """Return nrt's loss of one group, made of the traces with these indices; denominator K.

    `log_ratios` holds log π_old − log π_reference of the sampled tokens of all M traces.
    """
    base_T = enumeration.base_T.detach()
    facts = None
    if log_ratios is not None:
        ratios = tuple(log_ratios[m] for m in indices)
        facts = GroupFacts(torch.ones(len(ratios), dtype=torch.bool), (), log_ratios=ratios)
    credit = group_credit(method, enumeration.logp_MT[indices], base_T, facts=facts)
    rows = [enumeration.rows[m] for m in indices]
    logp_N = torch.cat([enumeration.logp[m] for m in indices])
    row_credits = []
    numbers = zip(credit.advantage_K.tolist(), credit.posterior_K.tolist(), indices, strict=True)
    for advantage, posterior, m in numbers:
        old_logp_N = enumeration.logp[m].detach()
        row_credits.append(RowCredit(advantage, base_T, old_logp_N, posterior=posterior))
    packed = streams(method, rows, row_credits, logp_N)
    return nrt_loss(logp_N, packed, ratio=method.ratio, denominator=len(indices)).total


def expected_loss(method, enumeration):
    """Return the expectation of the loss over groups of one trace."""
    p_M = enumeration.probability_M.detach()
    losses = [p_M[m] * group_loss(method, enumeration, [m]) for m in range(len(p_M))]
    return torch.stack(losses).sum()


def test_samples_are_a_prefix_code():
    """6 tokens, 2 of them stops, cap 3: 2 + 4·2 + 16·2 samples stop and 64 reach the cap.

    With one token banned, 2 + 6 + 18 stop and 27 reach the cap.
    """
    samples = all_samples(6, stop_ids=STOPS, cap=3)
    assert len(samples) == len({s.ids for s in samples}) == 2 + 8 + 32 + 64
    assert len(all_samples(6, stop_ids=STOPS, cap=3, banned={START})) == 2 + 6 + 18 + 27


def test_probabilities_sum_to_one(model):
    enumeration = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=3)
    assert enumeration.probability_M.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("ratio", ["none", "ppo"])
@pytest.mark.parametrize("name", REWARDS)
def test_expected_gradient_is_the_gradient_of_J(model, name, ratio):
    """E_z[−∇L(z)] = ∇J for every reward.

    The loss has trace and answer term, and traces end by several stop tokens or the cap.
    """
    enumeration = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=3)
    method = replace(RAW, reward=REWARDS[name], ratio=ratio)
    exact = gradient(model, enumeration.objective(REWARDS[name]))
    estimate = -gradient(model, expected_loss(method, enumeration))
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_expected_gradient_at_another_temperature(model, temperature):
    """J is that of the policy at this temperature; the reward's answer is read at 1."""
    settings = {"vocabulary": 6, "stop_ids": STOPS, "cap": 3}
    enumeration = enumerate_traces(model, PAIR, MARKERS, **settings, temperature=temperature)
    assert enumeration.probability_M.sum().item() == pytest.approx(1.0, abs=1e-6)
    exact = gradient(model, enumeration.objective(REWARDS["prob"]))
    estimate = -gradient(model, expected_loss(RAW, enumeration))
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()
    plain = enumerate_traces(model, PAIR, MARKERS, **settings)
    torch.testing.assert_close(enumeration.logp_MT, plain.logp_MT)
    other = gradient(model, plain.objective(REWARDS["prob"]))
    assert (exact - other).abs().max() > 1e-2 * exact.abs().max()


@pytest.mark.parametrize("name", REWARDS)
def test_leave_one_out_over_pairs(model, name):
    """With K = 2 and leave-one-out, the expectation over all pairs is ∇J about the mean of J."""
    enumeration = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=2)
    method = replace(RAW, reward=REWARDS[name], centre="leave-one-out")
    p_M = enumeration.probability_M.detach()
    terms = []
    for i, j in product(range(len(p_M)), repeat=2):
        terms.append(p_M[i] * p_M[j] * group_loss(method, enumeration, [i, j]))
    exact = gradient(model, enumeration.objective(REWARDS[name], centred=True))
    estimate = -gradient(model, torch.stack(terms).sum())
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


def expected_group_loss(method, enumeration, K, log_ratios=None):
    """Return the expectation of the loss over all groups of K traces."""
    p_M = enumeration.probability_M.detach()
    terms = []
    for indices in product(range(len(p_M)), repeat=K):
        group = list(indices)
        terms.append(p_M[group].prod() * group_loss(method, enumeration, group, log_ratios))
    return torch.stack(terms).sum()


@pytest.mark.parametrize("K", [2, 3])
def test_jepo_is_the_gradient_of_the_multi_sample_bound(model, K):
    """E[−∇L] = ∇ E[log (1/K) Σ_k π(y* | x, z_k)] over all groups of K traces.

    Only END stops a trace here, so that every sampled token is an action.
    """
    settings = {"vocabulary": 6, "stop_ids": frozenset({END})}
    enumeration = enumerate_traces(model, PAIR, MARKERS, **settings, cap=2 if K == 2 else 1)
    log_R_M, p_M = enumeration.logp_MT.double().sum(-1), enumeration.probability_M
    bounds = []
    for indices in product(range(len(p_M)), repeat=K):
        group = list(indices)
        bounds.append(p_M[group].prod() * (log_R_M[group].logsumexp(0) - math.log(K)))
    exact = gradient(model, torch.stack(bounds).sum())
    estimate = -gradient(model, expected_group_loss(METHODS["jepo"], enumeration, K))
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", ["log-prob", "jlb-original"])
def test_the_single_sample_bound(model, name):
    """E[−∇L] = ∇ E[log π(y* | x, z)]; leave-one-out changes no expected gradient."""
    settings = {"vocabulary": 6, "stop_ids": frozenset({END})}
    enumeration = enumerate_traces(model, PAIR, MARKERS, **settings, cap=2)
    exact = gradient(model, enumeration.objective(REWARDS["log-prob"]))
    estimate = -gradient(model, expected_group_loss(METHODS[name], enumeration, 2))
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("K", [2, 3])
def test_maxrl_on_verdicts_is_the_gradient_of_the_truncated_log_likelihood(model, K):
    """E[−∇L] = ∇ J_(K−1) with J_n = −Σ_(m ≤ n) (1 − p)^m / m and p the probability of a right trace.

    The estimator of arXiv 2602.02710 without its control variate has the order K. As in the
    authors' code, (R − mean)/mean is 0 for a group without a right trace, which costs one order.
    """
    enumeration = enumerate_traces(
        model, PAIR, MARKERS, vocabulary=6, stop_ids=frozenset({END}), cap=1
    )
    log_R_M = enumeration.logp_MT.detach().double().sum(-1)
    middle = log_R_M.median()

    def verdict(logp_KT, base_T):
        return (logp_KT.double().sum(-1) > middle).double()

    rules = {"reward": verdict, "centre": "mean", "scale": "mean", "answer_weight": 0.0}
    p = (enumeration.probability_M * (log_R_M > middle)).sum()
    exact = gradient(model, -sum((1 - p) ** m / m for m in range(1, K)))
    estimate = -gradient(model, expected_group_loss(replace(RAW, **rules), enumeration, K))
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


def action_logps(model, rows):
    """Return the log-probabilities of each row's sampled tokens, float64, with gradient."""
    tails = [logp for logp, _ in PaddedScorer(pad_id=0)(model, rows).rows()]
    return [tail[row.action_mask].double() for row, tail in zip(rows, tails, strict=True)]


def reference_model():
    """Return another model of the same architecture."""
    torch.manual_seed(1)
    return LlamaForCausalLM(tiny_config()).double().eval()


def test_latro_is_the_gradient_of_the_penalised_bound(model):
    """E[−∇L] = ∇ E[log π(y* | x, z) − β (log π(z) − log π_ref(z))] over all pairs of traces."""
    settings = {"vocabulary": 6, "stop_ids": frozenset({END})}
    enumeration = enumerate_traces(model, PAIR, MARKERS, **settings, cap=2)
    own = action_logps(model, enumeration.rows)
    reference = action_logps(reference_model(), enumeration.rows)
    log_ratios = [(a - b).detach() for a, b in zip(own, reference, strict=True)]
    p_M = enumeration.probability_M
    reference_M = torch.stack([logps.sum() for logps in reference]).detach()
    divergence = (p_M * (p_M.log() - reference_M)).sum()
    exact = gradient(model, enumeration.objective(REWARDS["log-prob"]) - 0.05 * divergence)
    loss = expected_group_loss(METHODS["latro"], enumeration, 2, log_ratios)
    estimate = -gradient(model, loss)
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", ["sdft", "opsd"])
def test_self_distillation_is_the_gradient_of_each_tokens_reverse_kl(model, name):
    """E[∇L] = ∇ Σ_s P(s) KL(π(· | s) ‖ π_teacher(· | s)), with the states' probabilities constant.

    A state s is a beginning of a trace. The gradient does not reach the states: each token answers
    for its own divergence only, as in the source.
    """
    settings = {"vocabulary": 6, "stop_ids": frozenset({END})}
    enumeration = enumerate_traces(model, PAIR, MARKERS, **settings, cap=2)
    reference = METHODS[name].trace_reference
    assert reference is not None
    teacher = reference_model() if reference.policy == "initial" else model
    hinted = [hinted_row(row, PAIR.answer_ids, STOPS) for row in enumeration.rows]
    assert hinted[0].prompt_ids == (4, 0, 5, 0)
    own = action_logps(model, enumeration.rows)
    others = [logps.detach() for logps in action_logps(teacher, hinted)]
    terms = {}  # (state, token) → its part of the divergence; many traces pass through it
    for row, own_Z, other_Z in zip(enumeration.rows, own, others, strict=True):
        actions = [token for token, acts in zip(row.tail_ids, row.action_mask, strict=True) if acts]
        state_probability = 1.0
        for t in range(len(actions)):
            part = own_Z[t].exp() * (own_Z[t] - other_Z[t])
            terms[tuple(actions[: t + 1])] = state_probability * part
            state_probability *= own_Z[t].exp().item()
    exact = gradient(model, torch.stack(list(terms.values())).sum())
    p_M = enumeration.probability_M.detach()
    losses = []
    for m, (row, own_Z, other_Z) in enumerate(zip(enumeration.rows, own, others, strict=True)):
        advantage_N = torch.zeros(len(row.tail_ids), dtype=torch.float64)
        advantage_N[row.action_mask] = other_Z - own_Z.detach()
        logp_N = enumeration.logp[m]
        credit = RowCredit(0.0, BASE_T, logp_N.detach(), token_advantage_N=advantage_N)
        packed = streams(METHODS[name], [row], [credit], logp_N)
        loss = nrt_loss(logp_N, packed, ratio=METHODS[name].ratio, denominator=1)
        losses.append(p_M[m] * loss.total)
    estimate = gradient(model, torch.stack(losses).sum())
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


def test_without_other_end_tokens_centring_changes_nothing(model):
    """If only END stops a trace, all sampled tokens are actions, and a baseline has no gradient."""
    stop_ids = frozenset({END})
    enumeration = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=stop_ids, cap=2)
    plain = gradient(model, enumeration.objective(REWARDS["prob"], centred=False))
    centred = gradient(model, enumeration.objective(REWARDS["prob"], centred=True))
    assert (plain - centred).abs().max() <= 1e-6 * plain.abs().max()


def test_a_wrong_stop_rule_would_show(model):
    """If an appended END counts as an action, the identity fails, so the tests above can fail."""
    enumeration = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=2)
    wrong_rows = [replace(row, end_sampled=True) for row in enumeration.rows]
    wrong = replace(enumeration, rows=wrong_rows)
    exact = gradient(model, enumeration.objective(REWARDS["prob"]))
    estimate = -gradient(model, expected_loss(RAW, wrong))
    assert (exact - estimate).abs().max() > 1e-3 * exact.abs().max()


def test_the_papers_methods_have_a_reward_each():
    paper = ("nrt-ws-neg-log-p", "nrt-ws-inv-p", "nrt-gm", "rlpr", "verifree", "jlb")
    assert {name: METHODS[name].reward for name in paper} == {
        "nrt-ws-neg-log-p": REWARDS["neg-log-prob"],
        "nrt-ws-inv-p": REWARDS["inverse-prob"],
        "nrt-gm": REWARDS["geometric-mean"],
        "rlpr": REWARDS["arithmetic-mean"],
        "verifree": REWARDS["prob"],
        "jlb": REWARDS["log-prob"],
    }
