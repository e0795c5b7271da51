"""What ends a trace: a model that ends its turn instead of its trace learns to write END, and is then served as it was trained."""

import pytest
import torch

import nrt
from nrt.data.checkers import resolve_checker
from nrt.eval.answering import answer_all
from nrt.eval.questions import EvalQuestion
from nrt.eval.reasoner import open_reasoner
from nrt.models import load_model, save_model
from nrt.trainer.setup import prepare
from nrt.types import Role
from tests.steps import collect
from tests.trainer.conftest import tiny_config, write_model


@pytest.fixture(scope="module")
def eager_to_end(tmp_path_factory):
    """A tiny model that ends most of its traces with eos: eos is 4 nats likelier than in the model it was made from."""
    folder = write_model(tmp_path_factory.mktemp("eager"))
    model, tokenizer = load_model(str(folder), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        ids = torch.tensor(
            [[tokenizer.bos_token_id, *tokenizer("what is two plus one ?").input_ids]]
        )
        hidden = model.base_model(ids).last_hidden_state[0].mean(0)
        model.get_input_embeddings().weight[tokenizer.eos_token_id] += (
            4 * hidden / hidden.square().sum()
        )
    save_model(model, tokenizer, folder, template=tokenizer.chat_template)
    return folder


def test_it_learns_to_write_end_and_is_served_as_it_was_trained(eager_to_end, pairs_file, tmp_path):
    """88 % of the first traces are stopped by eos. With eos kept in z, P(END | z) is never trained and stays near 0."""
    settings = {
        "steps": 130,
        "batch": 16,
        "traces": 4,
        "eval_every": 0,
        "save_every": 0,
        "heldout.rows": 16,
        "optimizer.lr": 3e-3,  # with fewer prompts or a higher rate, some seeds need longer
    }
    run = nrt.train(tiny_config(eager_to_end, pairs_file, tmp_path / "run", **settings))
    first, last = run.metrics()[1], run.metrics()[-1]
    assert first["trace/end_token"] > 0.7
    assert first["trace/unfinished"] == pytest.approx(
        first["trace/end_token"] + first["trace/capped"]
    )
    assert last["trace/unfinished"] <= 0.1
    assert last["heldout/accuracy"] > 0.8
    assert last["heldout/accuracy_served"] == last["heldout/accuracy"]
    assert [w for w in run.warnings() if w["kind"] == "end-token"] == []
    assert served_accuracy(run) == pytest.approx(last["heldout/accuracy_served"])


def served_accuracy(run) -> float:
    """As `nrt eval` asks: no help with END, and no answer where the model did not write it."""
    config, check = run.config, resolve_checker("exact")
    reasoner = open_reasoner(str(run.path), device="cpu")
    valid = prepare(config).valid
    assert valid is not None
    pairs = valid.pairs
    limits = {
        "max_trace_tokens": config.max_trace_tokens,
        "max_answer_tokens": config.max_answer_tokens,
    }
    right = 0
    for pair in pairs[:]:
        question = EvalQuestion("t", pair.example.messages, **limits)
        ((_, (reply,)),) = answer_all(reasoner, [question])
        right += check(reply.said[0].answer.strip(), pair.example.answer)
    return right / len(pairs)


def test_rows_have_no_end_token_before_end(eager_to_end, pairs_file, tmp_path):
    """But for methods by their authors' own rules, in which it is an action that can be punished."""
    settings = {"batch": 8, "traces": 8}
    for method, kept in (("nrt-gm", False), ("verifree-original", True)):
        parts = prepare(
            tiny_config(eager_to_end, pairs_file, tmp_path / "run", method=method, **settings)
        )
        rollout = collect(parts.learner, parts.draw, 8, seed=1)
        eos = parts.tokenizer.eos_token_id
        ended = [
            (g, k) for g in rollout.groups for k, trace in enumerate(g.traces) if trace.end_token
        ]
        assert len(ended) > 20
        for group, k in ended:
            in_trace = [
                t
                for t, role in zip(group.rows[k].tail_ids, group.rows[k].tail_roles, strict=True)
                if role == Role.TRACE
            ]
            assert (in_trace[-1:] == [eos]) == kept
            assert not group.rows[k].end_sampled
            assert len(group.traces[k].logps) == len(group.traces[k].ids)
            if kept:
                assert group.credit is not None
                assert group.credit.final_K[k] == 0, (
                    "VeriFree: a trace without its closing tag has R = 0"
                )


def test_held_out_records_say_what_a_server_gives(eager_to_end, pairs_file, tmp_path):
    run = nrt.train(
        tiny_config(eager_to_end, pairs_file, tmp_path / "run", steps=1, **{"heldout.rows": 16})
    )
    records = run.heldout(0)
    assert any(record["end_token"] for record in records)
    for record in records:
        assert record["correct_served"] == (record["correct"] and record["finished"])
        assert not (record["finished"] and record["end_token"])
