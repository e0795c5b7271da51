"""Methods as their own authors run them, and the authors' release, on groups worked by hand."""

import math

import pytest
import torch

from nrt.config import load_config
from nrt.errors import InputError
from nrt.objective import METHODS, GroupFacts, RowCredit, StdFilter, group_credit, nrt_loss, streams
from nrt.objective.method_state import ScoredGroup
from nrt.objective.reward_shaping import has_repeated_ngram
from nrt.trainer.resolve import resolve_method, resolve_names
from nrt.types import Role, Row

S, Z, E, A = Role.START, Role.TRACE, Role.END, Role.ANSWER


def facts(finished, traces=None):
    return GroupFacts(torch.tensor(finished), traces or tuple((k,) for k in range(len(finished))))


def row(finished):
    return Row((5, 6), (1, 7, 2, 8, 9), (S, Z, E, A, A), end_sampled=finished)


def streams_of(method, credit, finished):
    """Return (advantages, answer weights, format weights), [K, 5] each, with π_θ = π_old."""
    rows = [row(f) for f in finished]
    credits = [
        RowCredit(a, credit.weights_T, torch.zeros(5), r)
        for a, r in zip(credit.advantage_K.tolist(), credit.final_K.tolist(), strict=True)
    ]
    s = streams(method, rows, credits, torch.zeros(5 * len(rows)))
    return [
        stream.view(len(rows), 5)
        for stream in (s.advantage_N, s.answer_weight_N, s.format_weight_N)
    ]


def test_rlpr_by_hand():
    """r = .8 .4 .2 .5 and r′ = .3 give 0.9·max(0, r − r′) = .45 .09 0 .18.

    Traces 1 and 4 are closed: + .1 → .55 .09 0 .28.

    Traces 3 and 4 repeat a 10-gram ten times: 4 loses 1 → −.72, 3 is exactly 0 and loses nothing.
    Mean −.02, deviations .57 .11 .02 −.70, squares .8274, unbiased std √.2758; then + 1e-6.
    """
    method = METHODS["rlpr-original"]
    logp_KT = torch.tensor([[0.9, 0.7], [0.5, 0.3], [0.2, 0.2], [0.6, 0.4]]).log()
    finished, loop = [True, False, False, True], (7,) * 19
    credit = group_credit(
        method,
        logp_KT,
        torch.tensor([0.3, 0.3]).log(),
        facts=facts(finished, ((1,), (2,), loop, loop)),
    )
    assert credit.reward_K.tolist() == pytest.approx([0.8, 0.4, 0.2, 0.5], rel=1e-6)
    assert credit.final_K.tolist() == pytest.approx([0.55, 0.09, 0.0, -0.72], rel=1e-6)
    expected = [d / (math.sqrt(0.2758) + 1e-6) for d in (0.57, 0.11, 0.02, -0.70)]
    assert credit.advantage_K.tolist() == pytest.approx(expected, rel=1e-6)
    advantage, answer, marker = streams_of(method, credit, finished)
    # A trace's own END is an action.
    assert advantage[0].tolist() == pytest.approx([0, expected[0], expected[0], 0, 0], rel=1e-6)
    assert not answer.any(), "RLPR has no answer term"
    assert not marker.any()
    assert (method.ratio_clip, method.base_layout, method.base_policy) == (
        (0.2, 0.27),
        "bare",
        "initial",
    )


def test_rlpr_gives_no_advantage_below_its_epsilon():
    logp_KT = torch.tensor([[0.5], [0.5 + 1e-7]]).log()
    credit = group_credit(
        METHODS["rlpr-original"], logp_KT, torch.tensor([0.1]).log(), facts=facts([True, True])
    )
    assert credit.advantage_K.tolist() == [0.0, 0.0]


def test_repetition_needs_ten_windows():
    assert has_repeated_ngram(list(range(10)) * 10)
    assert not has_repeated_ngram(list(range(10)) * 9 + list(range(9)))
    assert not has_repeated_ngram([1, 2, 3])
    assert not has_repeated_ngram([])


def test_verifree_by_hand():
    """R = .72, .20 and .03 → 0 for the unfinished trace; means of the others .10 .36 .46.

    R is the answer weight.
    """
    method, finished = METHODS["verifree-original"], [True, True, False]
    logp_KT = torch.tensor([[0.9, 0.8], [0.5, 0.4], [0.3, 0.1]]).log()
    credit = group_credit(method, logp_KT, torch.tensor([0.99, 0.99]).log(), facts=facts(finished))
    assert credit.advantage_K.tolist() == pytest.approx([0.62, -0.16, -0.46], rel=1e-6)
    advantage, answer, marker = streams_of(method, credit, finished)
    assert advantage.tolist() == [
        pytest.approx([0, a, a * f, 0, 0], rel=1e-6)
        for a, f in zip([0.62, -0.16, -0.46], finished, strict=True)
    ]
    assert answer.tolist() == [pytest.approx([0, 0, 0, r, r], rel=1e-6) for r in (0.72, 0.2, 0.0)]
    assert not marker.any()
    assert method.ratio == "none"


def test_jlb_by_hand():
    """Σ log c = −1, −3, −2; means of the others −2.5, −1.5, −2; answer weight 1."""
    method = METHODS["jlb-original"]
    credit = group_credit(
        method, torch.tensor([[-0.5, -0.5], [-1.0, -2.0], [-2.0, 0.0]]), torch.tensor([-9.0, -9.0])
    )
    assert credit.advantage_K.tolist() == pytest.approx([1.5, -1.5, 0.0])
    _, answer, marker = streams_of(method, credit, [True] * 3)
    assert answer.tolist() == [[0, 0, 0, 1, 1]] * 3
    assert not marker.any()


@pytest.mark.parametrize(
    "name", ["rlpr-original", "verifree-original", "jlb-original", "mean-log-prob", "rlvr"]
)
def test_profiles_do_not_change_the_originals(name):
    config = load_config("gsm8k", [f"method={name}", "profile=recommended"])
    assert resolve_method(name, config.objective) == METHODS[name]


def test_the_release_profile_is_not_for_originals():
    with pytest.raises(InputError, match="profile=paper"):
        resolve_names(load_config("gsm8k", ["method=rlpr-original", "profile=release"]))


def kept_by_rlpr(stds, beta=0.5, ratio=0.99):
    """Return the kept groups per rollout as RLPR's code does, from a list of all rollouts' stds."""
    history, average, kept = [], None, []
    for step, group_stds in enumerate(stds, 1):
        if step >= 11:
            average = (
                sum(history) / len(history)
                if average is None
                else history[-1] * (1 - ratio) + average * ratio
            )
        kept.append([average is None or std >= beta * average for std in group_stds])
        if step >= 6:
            history.append(sum(group_stds) / len(group_stds))
    return kept


def test_the_filter_decides_like_the_code_of_rlpr():
    generator = torch.Generator().manual_seed(0)
    rollouts = [
        torch.rand(6, 4, generator=generator, dtype=torch.float64) * (1 + step / 10)
        for step in range(30)
    ]
    std_filter, kept = StdFilter(), []
    state = std_filter.initial()
    for rollout in rollouts:
        groups = [
            ScoredGroup(torch.zeros(4, 1), torch.zeros(1), rewards_K) for rewards_K in rollout
        ]
        kept.append([std_filter.keep(group, state) for group in groups])
        # Processes sum statistics in parts; here in halves.
        halves = [
            torch.stack([std_filter.statistics(g) for g in part]).sum(0)
            for part in (groups[:2], groups[2:])
        ]
        state = std_filter.advance(state, halves[0] + halves[1])
    assert kept == kept_by_rlpr([[r.std().item() for r in rollout] for rollout in rollouts])
    assert not all(all(decisions) for decisions in kept), "the test needs a dropped group"
    assert all(all(decisions) for decisions in kept[:10])


RATIOS = (0.5, 0.9, 1.25, 2.0)


def test_the_release_by_hand():
    """R = .1 .2 .6 against .5, unclipped: mean .3, unbiased std √.07 → A = (−2, −1, 3)/√7.

    Clamp and mask at ratios .5 .9 1.25 2: weights .8 .9 1.25 0 where A > 0, and 0 .9 1.25 1.28 where A < 0.
    """
    config = load_config("gsm8k", ["method=nrt-gm", "profile=release"])
    method = resolve_method("nrt-gm", config.objective)
    credit = group_credit(
        method, torch.tensor([[0.1], [0.2], [0.6]]).log(), torch.tensor([0.5]).log()
    )
    assert credit.advantage_K.tolist() == pytest.approx(
        [a / math.sqrt(7) for a in (-2, -1, 3)], rel=1e-6
    )
    # `x z END y*`: no START
    row = Row((5, 6), (7, 7, 7, 7, 2, 8), (Z, Z, Z, Z, E, A), end_sampled=False)
    for a, weights in (
        (credit.advantage_K[2], (0.8, 0.9, 1.25, 0.0)),
        (credit.advantage_K[0], (0.0, 0.9, 1.25, 1.28)),
    ):
        logp_N = torch.tensor([*(math.log(r) for r in RATIOS), 0.0, -1.0], requires_grad=True)
        old_N = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
        s = streams(method, [row], [RowCredit(a.item(), credit.weights_T, old_N)], logp_N)
        nrt_loss(
            logp_N, s, ratio=method.ratio, ratio_clip=method.ratio_clip, denominator=1.0
        ).total.backward()
        assert logp_N.grad is not None
        trace, end, answer = -logp_N.grad[:4], -logp_N.grad[4], -logp_N.grad[5]
        assert trace.tolist() == pytest.approx([w * a.item() for w in weights], rel=1e-5)
        # An appended END is an action, and has the format term.
        assert end.item() == pytest.approx(a.item() + 0.3)
        assert answer.item() == 1.0
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.warmup, optimizer.betas, optimizer.eps) == (
        2e-6,
        0.1,
        (0.9, 0.95),
        1e-15,
    )
    assert (config.markers.start, config.markers.end_from) == (None, "eos")


def test_the_release_gives_no_format_term_to_finished_traces():
    method = resolve_method(
        "nrt-gm", load_config("gsm8k", ["method=nrt-gm", "profile=release"]).objective
    )
    finished = Row((5,), (7, 2, 8), (Z, E, A), end_sampled=True)
    s = streams(
        method, [finished], [RowCredit(1.0, torch.zeros(1), torch.zeros(3))], torch.zeros(3)
    )
    assert s.format_weight_N.tolist() == [0, 0, 0]
