"""Loss and gradient of every method against the independent float64 reference (`reference.py`)."""

import copy

import pytest

from nrt.objective import METHODS
from nrt.training.setup import prepare
from tests.training import reference


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_the_references(make_config, method):
    """Rows go in: the ids that were sampled. Traces ended by END, by another end token and by the cap are among them."""
    checker = {"heldout.checker": "tests.training.test_methods:has_even_length"}
    parts = prepare(make_config(method=method, traces=6, profile="paper", **checker))
    stepper, markers = parts.stepper, parts.stepper.policy.markers
    assert markers.start_id is not None
    memory = stepper.method.memory
    rollout = stepper.collect(parts.draw, 4, seed=3, state=memory.initial() if memory else None)
    questions = [question_of(group) for group in rollout.groups]
    if method != "sft":
        traces = [trace for group in rollout.groups for trace in group.traces]
        assert {(t.finished, t.end_token) for t in traces} == {(True, False), (False, True), (False, False)}
        assert any(bool(group.advantage_K.any()) for group in rollout.groups)
    sums = stepper.gradient(rollout.groups)
    found = {name: p.grad.double() for name, p in stepper.policy.engine.model.named_parameters() if p.grad is not None}
    model = copy.deepcopy(stepper.policy.engine.model).double()
    model.zero_grad()
    expected = reference.loss(model, method, questions, start=markers.start_id, end=markers.end_id, N=stepper.loss_tokens)
    expected.backward()
    assert sums.total == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, p in model.named_parameters():
        assert (found[name] - p.grad).abs().max() <= 1e-4 * largest, name


def question_of(group) -> reference.Question:
    """The ids alone: no score and no credit goes along."""
    replies = group.replies or [None] * len(group.traces)
    written = []
    for trace, reply in zip(group.traces, replies, strict=True):
        own = {} if reply is None else {"reply": reply.ids, "reply_ended": reply.ended, "correct": reply.correct}
        written.append(reference.Written(trace.ids, trace.finished, **own))
    return reference.Question(group.pair.prompt_ids, group.pair.answer_ids, tuple(written))
