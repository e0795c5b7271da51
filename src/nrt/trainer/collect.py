"""The stages of a step before its updates: sample traces, score the reference answer after them,
compute advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from nrt.data import bare_row, hinted_row, null_row, sampled_part, trace_row
from nrt.trainer.groups import (
    BaselineScores,
    Group,
    GroupScores,
    SampledAnswer,
    SampledGroup,
    build_group,
    rows_to_train,
    sft_group,
)
from nrt.trainer.learner import Learner
from nrt.trainer.metrics import PhaseTimer
from nrt.trainer.policy import Policy, share_equal_rows
from nrt.types import Pair, Row, TailScores


def sample_groups(
    learner: Learner, pairs: Sequence[Pair], timer: PhaseTimer, *, seed: int, answer_seed: int
) -> list[SampledGroup]:
    """Sample K traces for each pair, and an answer after each trace for methods that train on
    sampled answers.

    The sampler gets the current weights first, and sleeps afterwards. SFT samples nothing.
    """
    method, policy = learner.method, learner.policy
    if not method.samples:
        return [SampledGroup(pair, (), (bare_row(pair),), ()) for pair in pairs]
    with timer("push"):
        policy.push_weights()
    with timer("rollout"):
        traces = policy.traces(
            pairs, learner.traces, seed=seed, keep_end_token=method.keeps_end_token
        )
        rows = [
            tuple(trace_row(pair, trace, policy.markers) for trace in group)
            for pair, group in zip(pairs, traces, strict=True)
        ]
        answers: list[tuple[SampledAnswer, ...]] = [()] * len(pairs)
        if method.samples_answers:
            answers = _sample_answers(learner, pairs, rows, answer_seed)
        policy.sampler.sleep()
    timer.sampled += sum(trace.n_sampled for group in traces for trace in group)
    timer.sampled += sum(len(answer.ids) for group in answers for answer in group)
    return [SampledGroup(*parts) for parts in zip(pairs, traces, rows, answers, strict=True)]


def score_baselines(
    learner: Learner, groups: Sequence[SampledGroup], timer: PhaseTimer
) -> list[BaselineScores]:
    """Score what is not scored with the trained rows (`scored_rows`), without gradient.

    These are the reference answers under the initial model, and after a baseline other than the
    policy's null trace; the reference answers after the traces, if the trained rows hold sampled
    ones; and the sampled tokens under the method's second policy.
    """
    method, policy = learner.method, learner.policy
    if not method.samples:
        return [BaselineScores(None, None, (), ()) for _ in groups]
    pairs = [group.pair for group in groups]
    none: list[Tensor | None] = [None] * len(pairs)
    initial, base = none, none
    answers: list[list[TailScores]] = [[] for _ in groups]
    with timer("score"):
        under_initial, references = _score_second_policy(learner, groups, timer)
        if learner.initial_reference:
            initial = [_answer(pair, tail) for pair, tail in zip(pairs, under_initial, strict=True)]
        from_initial, bare = method.base_policy == "initial", method.base_layout == "bare"
        if from_initial and bare and learner.initial_reference:
            base = initial
        elif from_initial or bare:
            row_of = bare_row if bare else partial(null_row, markers=policy.markers)
            base = _score_answers(policy, pairs, row_of, timer, initial=from_initial)
        if method.samples_answers:
            answers = _score_rows(learner, [answer_rows(learner, g) for g in groups], timer)
    return [BaselineScores(*p) for p in zip(initial, base, references, answers, strict=True)]


def answer_rows(learner: Learner, group: SampledGroup) -> tuple[Row, ...]:
    """Return the K rows with the reference answer, then the null trace's row: the rewards read
    their scores.
    """
    return (*group.rows, null_row(group.pair, learner.policy.markers))


def scored_rows(learner: Learner, group: SampledGroup) -> tuple[Row, ...]:
    """Return the rows that are scored with the first update or before it: the K trained rows, then
    the null trace's, unless the trained rows hold sampled answers. Empty for SFT.
    """
    if not learner.method.samples:
        return ()
    if learner.method.samples_answers:
        return trained_rows(learner, group)
    return answer_rows(learner, group)


def trained_rows(learner: Learner, group: SampledGroup) -> tuple[Row, ...]:
    """Return the rows that the updates forward: with sampled answers where the method samples them,
    else those of the traces.
    """
    if not learner.method.samples_answers:
        return group.rows
    return rows_to_train(group.pair, group.traces, group.sampled_answers, learner.policy.markers)


def reference_rows(learner: Learner, group: SampledGroup) -> tuple[Row, ...]:
    """Return the trained rows as the method's second policy reads them: up to their last sampled
    token, after `x` or `x y*`. Empty without a second policy.
    """
    reference = learner.method.trace_reference
    if reference is None:
        return ()
    rows = tuple(sampled_part(row) for row in trained_rows(learner, group))
    if not reference.sees_answer:
        return rows
    turn_ends = learner.policy.stop_ids
    return tuple(hinted_row(row, group.pair.answer_ids, turn_ends) for row in rows)


def score_groups(
    learner: Learner, groups: Sequence[SampledGroup], timer: PhaseTimer
) -> list[list[TailScores]]:
    """Return the scores of each group's `scored_rows`, without gradient."""
    if not learner.method.samples or not groups:
        return [[] for _ in groups]
    with timer("score"):
        return _score_rows(learner, [scored_rows(learner, group) for group in groups], timer)


def compute_group(
    learner: Learner,
    state: Tensor | None,
    groups: Sequence[SampledGroup],
    baselines: Sequence[BaselineScores],
    g: int,
    scored: Sequence[TailScores],
) -> Group:
    """Compute rewards and advantages of group `g`.

    Equal traces share one score, the null trace's included, and so have equal rewards.

    Args:
        state: the method's state.
        groups, baselines: those of the whole batch.
        scored: scores of the group's `scored_rows`.
    """
    method, policy, sampled, beside = learner.method, learner.policy, groups[g], baselines[g]
    pair = sampled.pair
    if not method.samples:
        return sft_group(pair)
    rows = answer_rows(learner, sampled)
    answer_tails = beside.answers or scored
    shared = share_equal_rows(rows, answer_tails)
    null_T = _answer(pair, shared[-1])
    versions = {trace.version for trace in sampled.traces}
    scores = GroupScores(
        traces=sampled.traces,
        rows=tuple(scored[: len(sampled.traces)]),
        logp_KT=torch.stack([_answer(pair, tail) for tail in shared[:-1]]),
        base_T=null_T if beside.base_T is None else beside.base_T,
        sampled_answers=sampled.sampled_answers,
        noise=learner.noise,
        off_policy=policy.off_policy or not versions <= {None, policy.engine.version},
        reference=beside.reference,
    )
    return build_group(
        method,
        pair,
        trained_rows(learner, sampled),
        scores,
        state,
        null_T=null_T,
        initial_T=beside.initial_T,
    )


def _score_second_policy(
    learner: Learner, groups: Sequence[SampledGroup], timer: PhaseTimer
) -> tuple[list[TailScores], list[tuple[Tensor, ...]]]:
    """Return the scores of `x y*` under the initial model, one for each group, and the
    log-probabilities of its `reference_rows` under the method's second policy.

    The first list is empty if the run does not need it. Rows that the initial model reads go into
    one call, so that they share their prompt.
    """
    reference = learner.method.trace_reference
    rows = [reference_rows(learner, group) for group in groups]
    n_bare = int(learner.initial_reference)
    by_initial = [(bare_row(group.pair),) * n_bare for group in groups]
    if reference is not None and reference.policy == "initial":
        by_initial = [(*bare, *others) for bare, others in zip(by_initial, rows, strict=True)]
    scored: list[list[TailScores]] = [[] for _ in groups]
    if any(by_initial):
        scored = _score_rows(learner, by_initial, timer, initial=True)
    tails = [group[n_bare:] for group in scored]
    if reference is not None and reference.policy == "old":
        tails = _score_rows(learner, rows, timer)
    answers = [group[0] for group in scored if n_bare]
    return answers, [tuple(logp_N for logp_N, _ in group) for group in tails]


def _sample_answers(
    learner: Learner, pairs: Sequence[Pair], rows: Sequence[Sequence[Row]], seed: int
) -> list[tuple[SampledAnswer, ...]]:
    """Sample an answer after each trace. The processes share the checks of the answers."""
    policy = learner.policy
    ids = policy.answers([row for group in rows for row in group], seed=seed)
    pair_of_row = [pair for pair, group in zip(pairs, rows, strict=True) for _ in group]

    def check(item: tuple[Pair, tuple[int, ...]]) -> SampledAnswer:
        pair, answer_ids = item
        body = policy.strip_end_token(answer_ids)
        correct = learner.check_answer(pair, body) if learner.check_answer else None
        return SampledAnswer(answer_ids, ended=len(body) < len(answer_ids), correct=correct)

    answers = iter(policy.engine.processes.map(check, list(zip(pair_of_row, ids, strict=True))))
    return [tuple(next(answers) for _ in group) for group in rows]


def _score_rows(
    learner: Learner,
    groups: Sequence[Sequence[Row]],
    timer: PhaseTimer,
    *,
    initial: bool = False,
) -> list[list[TailScores]]:
    """Score rows under the current weights or the initial model, group by group."""
    rows = [row for group in groups for row in group]
    timer.forwarded += sum(len(row.ids) for row in rows)
    scores = iter(learner.policy.score(rows, initial=initial))
    return [[next(scores) for _ in group] for group in groups]


def _score_answers(
    policy: Policy,
    pairs: Sequence[Pair],
    row_of: Callable[[Pair], Row],
    timer: PhaseTimer,
    *,
    initial: bool,
) -> list[Tensor]:
    """Return the reference answers' log-probabilities, in one row for each pair."""
    rows = [row_of(pair) for pair in pairs]
    timer.forwarded += sum(len(row.ids) for row in rows)
    return [
        _answer(pair, tail)
        for pair, tail in zip(pairs, policy.score(rows, initial=initial), strict=True)
    ]


def _answer(pair: Pair, tail: TailScores) -> Tensor:
    """Return the reference answer's log-probabilities [T], the end of a row's tail."""
    return tail[0][-len(pair.answer_ids) :]
