"""Every method trains, resumes and exports through the same step; what only some of them do is checked here."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nrt
from nrt.data import trace_row
from nrt.errors import Interrupted
from nrt.objective import METHODS
from nrt.trainer.collect import compute_group, score_baselines, score_groups
from nrt.trainer.groups import SampledAnswer, SampledGroup
from nrt.trainer.metrics import PhaseTimer
from nrt.trainer.resolve import resolve_names
from nrt.trainer.setup import prepare
from nrt.trainer.step import MAX_ROUNDS, update
from nrt.types import Role, Trace
from tests.steps import collect, step
from tests.trainer.test_train import InterruptAt, assert_same_run

BEYOND = [
    name
    for name in METHODS
    if name not in ("nrt-ws-neg-log-p", "nrt-ws-inv-p", "nrt-gm", "rlpr", "verifree", "jlb", "sft")
]


@pytest.mark.parametrize("method", BEYOND)
def test_it_trains(make_config, method):
    run = nrt.train(make_config(method=method, steps=2, eval_every=0))
    assert [m["step"] for m in run.metrics()] == [0, 1, 2]
    assert run.metrics()[-1]["optim/grad_norm"] > 0


@pytest.mark.parametrize("method", ["rlpr-original", "nrt-learned", "rlvr", "latro", "opsd"])
def test_state_survives_an_interruption(make_config, tmp_path, method):
    """Cut between a rollout's two updates and before a rollout: memory and replies go through the checkpoint."""
    settings = {"method": method, "updates_per_rollout": 2, "save_every": 0, "steps": 3}
    if METHODS[method].ratio == "none":
        settings["objective.ratio"] = "ppo"  # a second update needs it
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    for n in (4, 6):
        run = str(tmp_path / f"cut-{n}")
        with pytest.raises(Interrupted):
            nrt.train(make_config(run=run, **settings), listener=InterruptAt(n))
        assert_same_run(whole, nrt.train(make_config(run=run, resume=run, **settings)))


def test_learned_weights_move(make_config):
    run = nrt.train(make_config(method="nrt-learned", steps=3, eval_every=0))
    curves = [{k: v for k, v in m.items() if k.startswith("weights/")} for m in run.metrics()[1:]]
    assert len(curves[0]) == 13
    assert curves[0] != curves[1] != curves[2]


@pytest.fixture
def collect_filtered(make_config):
    """collect_filtered(B, decisions) → (rollout, draws, pairs): a real rollout whose filter decides as told, in the order of the stream."""

    def run(B, decisions):
        parts, decisions, draws = prepare(make_config(method="rlpr-original")), iter(decisions), []
        learner = replace(
            parts.learner,
            method=replace(parts.learner.method, keep=lambda group, state: next(decisions)),
        )

        def draw(offset, n):
            draws.append((offset, n))
            return parts.data.pairs[offset : offset + n]

        return (
            collect(learner, draw, B, seed=1, state=torch.zeros(3, dtype=torch.float64)),
            draws,
            parts.data.pairs,
        )

    return run


def test_dropped_groups_are_replaced_by_those_that_follow(collect_filtered):
    rollout, draws, pairs = collect_filtered(4, (i not in (1, 2, 4) for i in range(7)))
    assert draws == [(0, 4), (4, 2), (6, 1)]
    assert rollout.offsets == (0, 3, 5, 6)
    assert rollout.drawn == 7
    assert [g.pair for g in rollout.groups] == [pairs[i] for i in (0, 3, 5, 6)]
    assert rollout.metrics["group/filtered"] == pytest.approx(3 / 7)
    assert rollout.statistics[1].item() == 7, "the average is over all groups drawn"


def test_a_filter_that_drops_all_cannot_hold_up_a_run(collect_filtered):
    rollout, draws, _ = collect_filtered(2, (i == 3 for i in range(16)))
    assert len(draws) == MAX_ROUNDS
    assert rollout.offsets == (0, 3), "the one that was kept, and the first that was dropped"
    assert rollout.metrics["group/filtered"] == pytest.approx((rollout.drawn - 2) / rollout.drawn)


def test_rlvr_trains_on_its_own_answers(make_config):
    """Sampled answers are actions, y* is in no row, and the reward is the checker's verdict."""
    parts = prepare(
        make_config(
            method="rlvr", **{"heldout.checker": "tests.trainer.test_methods:has_even_length"}
        )
    )
    rollout = collect(parts.learner, parts.draw, 4, seed=1)
    rows = [row for group in rollout.groups for row in group.rows]
    assert all(
        Role.ANSWER not in row.tail_roles and Role.SAMPLED_ANSWER in row.tail_roles for row in rows
    )
    for group in rollout.groups:
        assert group.credit is not None
        assert group.credit.final_K.tolist() == [
            float(bool(answer.correct)) for answer in group.sampled_answers
        ]
    assert 0 < rollout.metrics["answer/correct"] < 1


def test_rlpr_as_published_acts_with_trace_and_answer(make_config):
    """Own answers are actions without a checker; the reward reads y* after the trace, and format asks for both ends."""
    parts = prepare(
        make_config(method="rlpr-original", max_answer_tokens=24, **{"heldout.checker": None})
    )
    rollout = collect(
        parts.learner, parts.draw, 4, seed=1, state=torch.zeros(3, dtype=torch.float64)
    )
    answers = [answer for group in rollout.groups for answer in group.sampled_answers]
    assert {answer.correct for answer in answers} == {None}
    assert "answer/correct" not in rollout.metrics
    for group in rollout.groups:
        assert group.credit is not None
        assert all(Role.ANSWER not in row.tail_roles for row in group.rows)
        pairs = zip(group.rows, group.sampled_answers, strict=True)
        assert all(row.tail_ids[-len(answer.ids) :] == answer.ids for row, answer in pairs)
        r_K, r0 = group.logp_KT.double().exp().mean(-1), group.credit.base_T.double().exp().mean()
        form_K = torch.tensor(
            [
                t.finished and r.ended
                for t, r in zip(group.traces, group.sampled_answers, strict=True)
            ]
        ).double()
        torch.testing.assert_close(
            group.credit.final_K, 0.9 * (r_K - r0).clamp(min=0) + 0.1 * form_K
        )


def test_a_teacher_reads_the_answer_before_the_trace(make_config):
    """`x y* START z END ŷ` under the initial model, without the end of y*'s turn; A_t is the gap."""
    parts = prepare(make_config(method="opsd"))
    engine = parts.learner.policy.engine
    rollout = collect(parts.learner, parts.draw, 4, seed=1)
    for group in rollout.groups:
        *hint, turn_end = group.pair.answer_ids
        assert turn_end in parts.learner.policy.stop_ids
        prompt_ids = (*group.pair.prompt_ids, *hint)
        hinted = [replace(row, prompt_ids=prompt_ids) for row in group.rows]
        teacher = engine.score(hinted, initial=True).rows()
        for row, credit, logp, (teacher_logp, _) in zip(
            group.rows, group.row_credits(), group.logp, teacher, strict=True
        ):
            assert row.tail_roles[-1] is Role.SAMPLED_ANSWER
            expected = torch.where(row.action_mask, teacher_logp - logp, 0.0)
            assert credit.token_advantage_N is not None
            torch.testing.assert_close(credit.token_advantage_N.float(), expected)
            assert expected[row.action_mask].abs().max() > 0
    gaps = []
    for group in rollout.groups:
        assert group.credit is not None
        gaps += group.credit.token_advantages or ()
    mean = torch.cat(gaps).mean().item()
    assert rollout.metrics["trace/log_ratio"] == pytest.approx(-mean, rel=1e-4)


def test_latro_pays_for_leaving_the_initial_model(make_config):
    """The penalty is 0 on the first rollout, and .05 · Σ (log π − log π_initial) after some steps.

    A trace at the cap has twice the mean reward in place of its own.
    """
    parts = prepare(make_config(method="latro", **{"optimizer.lr": 0.05}))
    policy = parts.learner.policy
    penalties = []
    for seed in (1, 2):
        rollout = collect(parts.learner, parts.draw, 4, seed=seed)
        for group in rollout.groups:
            assert group.credit is not None
            initial = [logp for logp, _ in policy.score(group.rows, initial=True)]
            expected = []
            for row, logp, reference in zip(group.rows, group.logp, initial, strict=True):
                gap_N = (logp - reference)[row.sampled_mask]
                expected.append(0.05 * gap_N.double().sum())
            capped_K = torch.tensor([trace.capped for trace in group.traces])
            reward_K = group.credit.reward_K
            reward_K = torch.where(capped_K, 2 * reward_K.mean(), reward_K)
            penalty_K = reward_K - group.credit.final_K
            torch.testing.assert_close(penalty_K, torch.stack(expected), rtol=1e-4, atol=1e-6)
            penalties.append(penalty_K.abs().max().item())
        update(parts.learner, rollout.groups)
    assert max(penalties[:4]) < 1e-6
    assert max(penalties[4:]) > 1e-3


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("nrt-gm", [("initial", 1)]),
        ("latro", [("initial", 5)]),
        ("nover", [("initial", 1), ("policy", 5)]),
        ("sdft", [("initial", 1), ("policy", 4), ("policy", 5)]),
        ("opsd", [("initial", 5), ("policy", 5)]),
    ],
)
def test_what_is_forwarded_without_gradient(make_config, method, expected):
    """Calls of the engine, in rows a prompt; K = 4. `x y*` is one row, the null trace another.

    The second policy of `latro` reads no reference answer.
    """
    parts = prepare(make_config(method=method, traces=4))
    engine, calls = parts.learner.policy.engine, []
    score = engine.score

    def record(rows, *, initial=False):
        calls.append(("initial" if initial else "policy", rows))
        return score(rows, initial=initial)

    engine.score = record
    step(parts.learner, parts.draw, 4, seed=1)
    assert [(reader, len(rows) / 4) for reader, rows in calls] == expected
    if method == "latro":
        ((_, rows),) = calls
        traces = [row for row in rows if Role.TRACE in row.tail_roles]
        assert traces
        assert not any(row.mask(Role.ANSWER).any() for row in traces)


def test_what_a_second_reader_needs_is_said_early(make_config):
    for method in ("latro", "opsd"):
        with pytest.raises(nrt.InputError, match=f"{method} scores its traces under the initial"):
            prepare(make_config(method=method, initial_reference=False))
    prepare(make_config(method="sdft", initial_reference=False))
    with pytest.raises(nrt.InputError, match="sdft has an advantage for each token"):
        resolve_names(make_config(method="sdft", engine="verl"))
    prepare(make_config(method="nover", max_answer_tokens=44))
    with pytest.raises(nrt.InputError, match="in the teacher's prompt"):
        prepare(make_config(method="sdft", max_answer_tokens=44))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "sft"])
def test_groups_of_one_question_do_not_mix(make_config, method):
    """Two references of one question, and the same traces: each group has the credit that it has alone.

    The groups share their prompt, so they are forwarded together.
    """
    settings = {"method": method, "traces": 4, "profile": "paper"}
    parts = prepare(make_config(**settings, **{"heldout.checker": "exact"}))
    learner, markers = parts.learner, parts.learner.policy.markers
    first = parts.data.pairs[0]
    pairs = [first, replace(first, answer_ids=(*first.answer_ids[1:-1], *first.answer_ids[-2:]))]
    traces = tuple(Trace((5 + k, 7)[: k % 3], finished=k < 3) for k in range(4))
    answers = tuple(SampledAnswer((8, 9 + k, 2), ended=True, correct=k == 1) for k in range(4))
    drafts = []
    for pair in pairs:
        rows = tuple(trace_row(pair, trace, markers) for trace in traces)
        drafts.append(
            SampledGroup(pair, traces, rows, answers if learner.method.samples_answers else ())
        )
    together = groups_of(parts, drafts)
    for draft, beside in zip(drafts, together, strict=True):
        (alone,) = groups_of(parts, [draft])
        assert alone.credit is not None
        assert beside.credit is not None
        assert beside.logp_KT.shape[1] == len(draft.pair.answer_ids)
        for a, b in (
            (alone.credit.final_K, beside.credit.final_K),
            (alone.logp_KT, beside.logp_KT),
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.advantage_K, beside.advantage_K, rtol=1e-3, atol=1e-4)
        for a, b in zip(alone.row_credits(), beside.row_credits(), strict=True):
            torch.testing.assert_close(a.weights_T, b.weights_T, rtol=1e-4, atol=1e-6)
            assert a.posterior == pytest.approx(b.posterior, rel=1e-4)
            if a.token_advantage_N is not None:
                torch.testing.assert_close(
                    a.token_advantage_N, b.token_advantage_N, rtol=1e-4, atol=1e-5
                )
    rewards = [group.credit.reward_K for group in together if group.credit]
    assert not torch.allclose(*rewards, rtol=0.01, atol=0)


def groups_of(parts, drafts):
    """Score and credit groups whose traces are given."""
    learner, timer = parts.learner, PhaseTimer()
    memory = learner.method.state_rule
    state = memory.initial() if memory else None
    baselines = score_baselines(learner, drafts, timer)
    scores = score_groups(learner, drafts, timer)
    return [
        compute_group(learner, state, drafts, baselines, g, tails) for g, tails in enumerate(scores)
    ]


def has_even_length(answer, reference):
    return len(answer) % 2 == 0


def test_baselines_without_markers_and_under_the_initial_model(make_config):
    """Four readings of one answer; on the first rollout the initial model is the policy, so the policies agree."""
    bases = {}
    for layout in ("null", "bare"):
        for policy in ("old", "initial"):
            settings = {"objective.base_layout": layout, "objective.base_policy": policy}
            parts = prepare(make_config(method="nrt-gm", **settings))
            group = collect(parts.learner, parts.draw, 1, seed=1).groups[0]
            assert group.credit is not None
            bases[layout, policy] = group.credit.base_T
    torch.testing.assert_close(bases["null", "old"], bases["null", "initial"])
    torch.testing.assert_close(bases["bare", "old"], bases["bare", "initial"])
    assert not torch.allclose(bases["null", "old"], bases["bare", "old"])


def test_the_release_layout_has_no_start(make_config, tmp_path):
    run = nrt.train(
        make_config(method="nrt-gm", profile="release", steps=2, **{"markers.end_from": "eos"})
    )
    parts = prepare(run.config.model_copy(update={"run": str(tmp_path / "again")}))
    rows = [
        row for group in collect(parts.learner, parts.draw, 2, seed=1).groups for row in group.rows
    ]
    assert all(Role.START not in row.tail_roles for row in rows)
    assert "<|think_start|>" not in parts.tokenizer.get_vocab()
    config = make_config(
        method="nrt-gm",
        profile="release",
        steps=3,
        run=str(run.path),
        resume=str(run.path),
        **{"markers.end_from": "eos"},
    )
    assert nrt.train(config).metrics()[-1]["step"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rlpr-original", "initial_reference": False}, "initial_reference=true"),
        ({"method": "rlvr", "heldout.checker": None}, "heldout.checker="),
        ({"method": "verifree-original", "traces": 1}, "K ≥ 2"),
    ],
)
def test_what_a_method_needs_is_said_early(make_config, settings, message):
    with pytest.raises(nrt.InputError, match=message):
        nrt.train(make_config(**settings))


def test_a_method_from_outside_the_package(make_config, tmp_path, monkeypatch):
    """docs/new-method.md: the code block there is the module here."""
    document = (Path(__file__).parents[2] / "docs" / "new-method.md").read_text(encoding="utf-8")
    block = next(
        part for part in document.split("```python\n")[1:] if part.startswith("# mymethods.py")
    ).split("```")[0]
    (tmp_path / "mymethods.py").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        METHODS, "hardest", METHODS["nrt-gm"]
    )  # so that what the module registers goes again
    run = nrt.train(make_config(method="hardest", plugins=("mymethods",), steps=2, eval_every=0))
    assert run.metrics()[-1]["optim/grad_norm"] > 0
    trace = run.traces()[0]["traces"][0]
    assert trace["reward"] == pytest.approx(math.exp(min(trace["answer_logp"])), rel=1e-4)
    with pytest.raises(nrt.InputError, match="plugins=nomethods"):
        nrt.train(make_config(plugins=("nomethods",), run=str(tmp_path / "none")))
