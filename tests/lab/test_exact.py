"""The estimator's expectation equals the gradient of the enumerated objective."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nrt.data import Markers
from nrt.lab.exact import all_samples, enumerate_traces
from nrt.objective import METHODS, REWARDS, Method, RowCredit, group_credit, nrt_loss, streams
from nrt.types import Pair

START, END, EOS = 1, 2, 3
MARKERS = Markers(START, END)
STOPS = frozenset({END, EOS})
PAIR = Pair(example=None, prompt_ids=(4, 0), answer_ids=(5, 0, EOS))  # type: ignore[arg-type]
RAW = Method("raw", REWARDS["prob"], clip=False, centre=None, scale=None, ratio="none", format_coef=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
        initializer_range=0.5, bos_token_id=None, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def gradient(model, scalar):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()), retain_graph=True)])


def group_loss(method, world, chosen):
    """The package's loss of one group made of the chosen traces, denominator K."""
    credit = group_credit(method, world.logp_MT[chosen], world.base_T.detach())
    rows = [world.rows[m] for m in chosen]
    logp_N = torch.cat([world.logp[m] for m in chosen])
    row_credits = [
        RowCredit(a, world.base_T.detach(), world.logp[m].detach()) for a, m in zip(credit.advantage_K.tolist(), chosen, strict=True)
    ]
    s = streams(method, rows, row_credits, logp_N)
    return nrt_loss(logp_N, s, ratio=method.ratio, denominator=len(chosen)).total


def test_samples_are_a_prefix_code():
    """6 tokens, 2 of them stops, cap 3: 2 + 4·2 + 16·2 sequences that stop and 64 that reach the cap; with one banned, 2 + 6 + 18 + 27."""
    samples = all_samples(6, stop_ids=STOPS, cap=3)
    assert len(samples) == len({s.ids for s in samples}) == 2 + 8 + 32 + 64
    assert len(all_samples(6, stop_ids=STOPS, cap=3, banned={START})) == 2 + 6 + 18 + 27


def test_probabilities_sum_to_one(model):
    world = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=3)
    assert world.probability_M.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("ratio", ["none", "ppo"])
@pytest.mark.parametrize("name", REWARDS)
def test_expected_gradient_is_the_gradient_of_J(model, name, ratio):
    """E_z[−∇L(z)] = ∇J for every reward: trace and answer term together, several stop tokens and the cap included."""
    world = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=3)
    method = replace(RAW, reward=REWARDS[name], ratio=ratio)
    p_M = world.probability_M.detach()
    expected_loss = torch.stack([p_M[m] * group_loss(method, world, [m]) for m in range(len(p_M))]).sum()
    exact = gradient(model, world.objective(REWARDS[name]))
    estimate = -gradient(model, expected_loss)
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", REWARDS)
def test_leave_one_out_over_pairs(model, name):
    """With K = 2 and leave-one-out, the expectation over all pairs of traces is the gradient of J about its mean."""
    world = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=2)
    method = replace(RAW, reward=REWARDS[name], centre="leave-one-out")
    p_M = world.probability_M.detach()
    terms = [p_M[i] * p_M[j] * group_loss(method, world, [i, j]) for i, j in product(range(len(p_M)), repeat=2)]
    exact = gradient(model, world.objective(REWARDS[name], centred=True))
    estimate = -gradient(model, torch.stack(terms).sum())
    assert (exact - estimate).abs().max() <= 1e-5 * exact.abs().max()


def test_without_other_end_tokens_centring_changes_nothing(model):
    """Only END stops a trace: then all sampled tokens are actions, and a baseline has no gradient of its own."""
    world = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=frozenset({END}), cap=2)
    plain, centred = (gradient(model, world.objective(REWARDS["prob"], centred=c)) for c in (False, True))
    assert (plain - centred).abs().max() <= 1e-6 * plain.abs().max()


def test_a_wrong_stop_rule_would_show(model):
    """Treating the appended END as an action breaks the identity: the check can fail."""
    world = enumerate_traces(model, PAIR, MARKERS, vocabulary=6, stop_ids=STOPS, cap=2)
    wrong = replace(world, rows=[replace(row, end_sampled=True) for row in world.rows])
    p_M = world.probability_M.detach()
    expected_loss = torch.stack([p_M[m] * group_loss(RAW, wrong, [m]) for m in range(len(p_M))]).sum()
    exact = gradient(model, world.objective(REWARDS["prob"]))
    assert (exact + gradient(model, expected_loss)).abs().max() > 1e-3 * exact.abs().max()


def test_the_papers_methods_have_a_reward_each():
    paper = ("nrt-ws-neg-log-p", "nrt-ws-inv-p", "nrt-gm", "rlpr", "verifree", "jlb")
    assert {name: METHODS[name].reward for name in paper} == {
        "nrt-ws-neg-log-p": REWARDS["neg-log-prob"], "nrt-ws-inv-p": REWARDS["inverse-prob"], "nrt-gm": REWARDS["geometric-mean"],
        "rlpr": REWARDS["arithmetic-mean"], "verifree": REWARDS["prob"], "jlb": REWARDS["log-prob"],
    }  # fmt: skip
