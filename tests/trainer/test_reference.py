"""Loss and gradient of every method against the independent float64 reference (`reference.py`)."""

import copy

import pytest

from nrt.objective import METHODS
from nrt.trainer.setup import prepare
from tests.steps import collect, gradient, local_engine
from tests.trainer import reference


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_the_references(make_config, method):
    """Rows go in: the ids that were sampled. Traces ended by END, by another end token and by the cap are among them."""
    checker = {"heldout.checker": "tests.trainer.test_methods:has_even_length"}
    parts = prepare(make_config(method=method, traces=6, profile="paper", **checker))
    learner, markers = parts.learner, parts.learner.policy.markers
    assert markers.start_id is not None
    memory = learner.method.state_rule
    rollout = collect(learner, parts.draw, 4, seed=3, state=memory.initial() if memory else None)
    questions = [question_of(group) for group in rollout.groups]
    if method != "sft":
        traces = [trace for group in rollout.groups for trace in group.traces]
        assert {(t.finished, t.end_token) for t in traces} == {
            (True, False),
            (False, True),
            (False, False),
        }
        assert any(bool(group.advantage_K.any()) for group in rollout.groups)
    sums = gradient(learner, rollout.groups)
    found = {
        name: p.grad.double()
        for name, p in local_engine(learner).model.named_parameters()
        if p.grad is not None
    }
    model = copy.deepcopy(local_engine(learner).model).double()
    model.zero_grad()
    expected = reference.loss(
        model, method, questions, start=markers.start_id, end=markers.end_id, N=learner.loss_tokens
    )
    expected.backward()
    assert sums.total == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, p in model.named_parameters():
        assert (found[name] - p.grad).abs().max() <= 1e-4 * largest, name


def question_of(group) -> reference.Question:
    """The ids alone: no score and no credit goes along."""
    answers = group.sampled_answers or [None] * len(group.traces)
    written = []
    for trace, answer in zip(group.traces, answers, strict=True):
        own = (
            {}
            if answer is None
            else {"reply": answer.ids, "reply_ended": answer.ended, "correct": answer.correct}
        )
        written.append(reference.Written(trace.ids, trace.finished, capped=trace.capped, **own))
    return reference.Question(group.pair.prompt_ids, group.pair.answer_ids, tuple(written))
