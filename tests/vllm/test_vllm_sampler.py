"""The real vLLM in this process, on a CPU: `make test-vllm`, in an environment of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nrt.rollout import Request
from nrt.scoring import PaddedScorer
from nrt.types import Role, Row

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from nrt.eval.answering import answer_all  # noqa: E402
from nrt.eval.questions import EvalQuestion  # noqa: E402
from nrt.eval.reasoner import open_reasoner  # noqa: E402
from nrt.types import Message  # noqa: E402
from tests.eval.reasoners import SHAPE, save_tiny_model  # noqa: E402
from tests.tiny import tiny_model  # noqa: E402

PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14)]
ASKED = EvalQuestion(
    "t", (Message("user", "what is 3 plus 4 ?"),), max_trace_tokens=12, max_answer_tokens=10
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("vllm"), thinks=True, context=256)


@pytest.fixture(scope="module")
def reasoner(folder):
    """One engine for all tests: two do not share a machine's memory."""
    return open_reasoner(folder, device="cpu", backend="vllm", max_rows=8)


@pytest.fixture(scope="module")
def sampler(reasoner):
    return reasoner.generator.sampler


def scores(model, prompt, ids):
    row = Row(prompt, tuple(ids), (Role.TRACE,) * len(ids), end_sampled=False)
    with torch.no_grad():
        return PaddedScorer(0)(model, [row]).logp_N.tolist()


def test_sampled_log_probabilities_are_the_scorers(folder, sampler):
    model = open_reasoner(folder, device="cpu").model
    for greedy in (False, True):
        groups = sampler.sample(
            Request(PROMPTS, n=2, stop_ids=frozenset({2}), cap=12, seed=1, greedy=greedy)
        )
        assert [len(group) for group in groups] == [2, 2, 2]
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for sample in group:
                assert len(sample.ids) == 12 or sample.ids[-1] == 2
                assert sample.logps == pytest.approx(scores(model, prompt, sample.ids), abs=1e-4)


def test_a_banned_token_is_never_drawn(folder, sampler):
    """START inside a trace: its bias leaves e^-100 of its probability, and the reported log-probabilities are those of the rest."""
    model, start = open_reasoner(folder, device="cpu").model, 7
    request = Request([(5, 6, start), (8, start)], n=64, stop_ids=frozenset({2}), cap=12, seed=1)
    assert any(start in sample.ids for group in sampler.sample(request) for sample in group)
    for prompt, group in zip(
        request.prompts,
        sampler.sample(dataclasses.replace(request, banned=frozenset({start}))),
        strict=True,
    ):
        for sample in group:
            assert start not in sample.ids
            row = Row(
                prompt[:-1],
                (start, *sample.ids),
                (Role.START, *[Role.TRACE] * len(sample.ids)),
                end_sampled=False,
            )
            with torch.no_grad():
                expected = PaddedScorer(0)(model, [row]).logp_N.tolist()[1:]
            assert sample.logps == pytest.approx(expected, abs=1e-4)


def test_seeds_belong_to_prompts(sampler):
    request = Request(PROMPTS, n=2, stop_ids=frozenset(), cap=8, seed=(3, 4, 5))
    alone = [
        sampler.sample(dataclasses.replace(request, prompts=[prompt], seed=(seed,)))[0]
        for prompt, seed in zip(PROMPTS, (3, 4, 5), strict=True)
    ]
    assert [[one.ids for one in group] for group in sampler.sample(request)] == [
        [one.ids for one in group] for group in alone
    ]
    same = sampler.sample(Request([PROMPTS[0]] * 2, n=2, stop_ids=frozenset(), cap=8, seed=0))
    assert len({one.ids for group in same for one in group}) == 4


def test_new_weights_sample_as_the_new_model(folder, sampler):
    old = open_reasoner(folder, device="cpu").model
    new = tiny_model(seed=9, vocab_size=old.config.vocab_size, max_position_embeddings=256, **SHAPE)
    for model in (new, old):
        sampler.load_weights(model.named_parameters())
        ((sample,),) = sampler.sample(
            Request([PROMPTS[2]], n=1, stop_ids=frozenset(), cap=12, seed=1)
        )
        assert sample.logps == pytest.approx(scores(model, PROMPTS[2], sample.ids), abs=1e-4)


def test_scores_are_the_scorers(folder, sampler):
    model = open_reasoner(folder, device="cpu").model
    rows = [Row(prompt, (7, 8, 9), (Role.ANSWER,) * 3, end_sampled=False) for prompt in PROMPTS]
    for row, found in zip(rows, sampler.score(rows), strict=True):
        assert found == pytest.approx(scores(model, row.prompt_ids, row.tail_ids), abs=1e-4)


def test_both_backends_say_the_same_greedily(folder, reasoner):
    asked = [ASKED, dataclasses.replace(ASKED, choices=("seven", "9"), temperature=0.001)]
    said = {}
    for backend, one in (("hf", open_reasoner(folder, device="cpu")), ("vllm", reasoner)):
        said[backend] = {
            reply.key: reply.said[0] for _, found in answer_all(one, asked) for reply in found
        }
    for question in asked:
        ours, theirs = said["hf"][question.key], said["vllm"][question.key]
        assert (ours.trace, ours.answer, ours.finished) == (
            theirs.trace,
            theirs.answer,
            theirs.finished,
        )
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-3)
