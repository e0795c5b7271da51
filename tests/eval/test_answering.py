"""Traces and answers of evaluation questions: their separation, their caps and the stop strings."""

import dataclasses
import json
import math

import pytest
import torch

from nrt.errors import InputError
from nrt.eval.answering import answer_all
from nrt.eval.questions import EvalQuestion, ReplyStore
from nrt.eval.reasoner import find_model, open_reasoner
from nrt.types import Message
from tests.eval.reasoners import save_tiny_model, scripted

ASKED = EvalQuestion(
    "t", (Message("user", "what is 3 plus 4 ?"),), max_trace_tokens=12, max_answer_tokens=10
)


def reply(reasoner, question, **settings):
    ((_, (model_reply,)),) = answer_all(reasoner, [question], **settings)
    return model_reply


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    names = {
        thinks: save_tiny_model(folder / str(thinks), thinks=thinks, context=256)
        for thinks in (False, True)
    }
    return {thinks: open_reasoner(name, device="cpu") for thinks, name in names.items()}


def test_answer_of_a_model_that_does_not_think_is_what_generate_gives(opened):
    reasoner = opened[False]
    (said,) = reply(reasoner, ASKED).said
    ids = torch.tensor([reasoner.chat.encode_prompt(ASKED.messages)])
    out = reasoner.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, pad_token_id=0
    )
    assert said.answer == reasoner.chat._tokenizer.decode(
        out[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert (said.trace, said.trace_tokens, said.finished) == (None, 0, True)


def test_trace_comes_first_and_has_a_cap_of_its_own():
    seen = []

    def say(before, tracing):
        seen.append((before[-30:], tracing))
        return "3 and 4 <|think_end|>" if tracing else "it is 7\n\nQ: next"

    question = dataclasses.replace(ASKED, until=("\n\n", "Q:"), max_trace_tokens=2048)
    (said,) = reply(scripted(say), question).said
    assert said.trace == "3 and 4 "
    assert said.finished
    assert said.answer == "it is 7"
    assert [tracing for _, tracing in seen] == [True, False]
    assert seen[1][0].endswith("3 and 4 <|think_end|>")


def test_stop_strings_do_not_end_a_trace():
    question = dataclasses.replace(
        ASKED, until=("\n\n",), max_trace_tokens=2048, max_answer_tokens=100
    )
    reasoner = scripted(
        lambda before, tracing: "one\n\ntwo<|think_end|>" if tracing else "the answer\n\nmore"
    )
    (said,) = reply(reasoner, question).said
    assert (said.trace, said.answer, said.cut) == ("one\n\ntwo", "the answer", False)


def test_unclosed_trace_has_no_answer():
    (said,) = reply(scripted(lambda before, tracing: "the answer is 7 "), ASKED).said
    assert (said.finished, said.answer, said.answer_tokens, said.trace_tokens) == (False, "", 0, 12)


def test_null_trace_stands_where_the_trace_would():
    seen = []
    reasoner = scripted(lambda before, tracing: seen.append((before, tracing)) or "7")
    (said,) = reply(reasoner, dataclasses.replace(ASKED, null=True)).said
    ((before, tracing),) = seen
    assert before.endswith("<|think_start|><|think_end|>")
    assert not tracing
    assert (said.trace, said.answer) == (None, "7")


def test_opening_stands_after_the_trace_and_belongs_to_the_answer():
    seen = []
    reasoner = scripted(
        lambda before, tracing: seen.append(before) or ("z<|think_end|>" if tracing else " 7")
    )
    (said,) = reply(reasoner, dataclasses.replace(ASKED, opening="The answer is")).said
    assert said.answer == "The answer is 7"
    assert seen[1].endswith("z<|think_end|>The answer is")


def test_several_answers_each_have_a_trace_of_their_own(opened):
    question = dataclasses.replace(ASKED, n=5, temperature=1.0, max_trace_tokens=200)
    said = reply(opened[True], question).said
    assert len({one.trace for one in said}) == 5
    assert all(one.answer == "" for one in said if not one.finished)
    assert len({one.answer for one in reply(opened[False], question).said}) == 5


def test_replies_do_not_depend_on_what_is_asked_beside(opened):
    questions = [
        dataclasses.replace(
            ASKED,
            messages=(Message("user", "why " * (1 + i) + "?"),),
            n=2,
            temperature=0.8,
            top_p=0.95,
        )
        for i in range(5)
    ]
    together = {
        one.key: one.said
        for _, found in answer_all(opened[True], questions, batch=64)
        for one in found
    }
    for question in questions:
        assert reply(opened[True], question, batch=2).said == together[question.key]


def test_likelihood_of_choices_after_the_trace(opened):
    """Each is the sum of the model's log-probabilities, after the same sampled trace."""
    reasoner = opened[True]
    question = dataclasses.replace(ASKED, choices=("seven", "it is eight .", "9"))
    (said,) = reply(reasoner, question).said
    assert said.trace is not None
    request = reasoner.generator.trace_request(
        [reasoner.pair("what is 3 plus 4 ?")], 1, seed=[question.seed_of(0, "trace")]
    )
    ((sample,),) = reasoner.generator.sampler.sample(dataclasses.replace(request, cap=12))
    ids = reasoner.generator.to_trace(sample).ids
    before = (
        *reasoner.chat.encode_prompt(question.messages),
        reasoner.chat.start_id,
        *ids,
        reasoner.chat.end_id,
    )
    for choice, logp in zip(question.choices, said.logps, strict=True):
        tail = reasoner.chat.encode_text(choice)
        with torch.no_grad():
            scores = reasoner.model(torch.tensor([before + tail])).logits[0].log_softmax(-1)
        assert logp == pytest.approx(
            sum(scores[len(before) - 1 + i, token].item() for i, token in enumerate(tail)), abs=1e-4
        )


def test_context_too_short_is_shared_between_trace_and_answer():
    """1,000 tokens of room and caps of 3,000 and 1,000: 750 and 250."""

    def say(before, tracing):
        return "x" if tracing else "x" * 5000

    reasoner = dataclasses.replace(
        scripted(say), context=1002 + len(scripted(say).chat.encode_prompt(ASKED.messages))
    )
    (said,) = reply(
        reasoner, dataclasses.replace(ASKED, max_trace_tokens=3000, max_answer_tokens=1000)
    ).said
    assert said.trace_tokens == 750
    (said,) = reply(
        reasoner,
        dataclasses.replace(ASKED, max_trace_tokens=3000, max_answer_tokens=1000, null=True),
    ).said
    assert said.answer_tokens == 1000
    (said,) = reply(
        reasoner, dataclasses.replace(ASKED, max_trace_tokens=12, max_answer_tokens=100)
    ).said
    assert (said.trace_tokens, said.finished) == (12, False)


def test_no_room_for_an_answer_is_an_error(opened):
    reasoner = opened[True]
    asked = dataclasses.replace(ASKED, messages=(Message("user", "x" * 300),))
    with pytest.raises(InputError, match="no room for an"):
        reply(reasoner, asked)


def test_replies_are_found_again_and_half_lines_are_not(tmp_path, opened):
    questions = [
        dataclasses.replace(ASKED, messages=(Message("user", f"what is {i} ?"),)) for i in range(4)
    ]
    replies = ReplyStore(tmp_path)
    for task, found in answer_all(opened[False], questions[:3]):
        replies.add(task, found)
    file = tmp_path / "t.0.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # killed while it wrote
    again = ReplyStore(tmp_path, worker=1)
    missing = again.missing([*questions, questions[3]])
    assert len(missing) == 2
    assert questions[3] in missing
    for task, found in answer_all(opened[False], missing):
        again.add(task, found)
    replies.add("t", [])  # the first worker appends after its broken line
    complete = ReplyStore(tmp_path)
    assert not complete.missing(questions)
    assert complete[questions[0]].said == reply(opened[False], questions[0]).said
    with pytest.raises(InputError, match="no reply"):
        complete[dataclasses.replace(questions[0], seed=7)]


def test_likelihood_survives_the_file(tmp_path):
    reasoner = scripted(
        lambda before, tracing: "z<|think_end|>",
        likelihood=lambda before, choice: -float(len(choice)),
    )
    question = dataclasses.replace(ASKED, choices=("a", "bcd"))
    replies = ReplyStore(tmp_path)
    for task, found in answer_all(reasoner, [question]):
        replies.add(task, found)
    assert ReplyStore(tmp_path)[question].said[0].logps == (-1.0, -3.0)
    assert not any(
        math.isnan(one)
        for line in (tmp_path / "t.0.jsonl").read_text().splitlines()
        for one in json.loads(line)["said"][0]["logps"]
    )


def test_source_says_whether_a_model_thinks_without_opening_it(tmp_path):
    assert find_model(save_tiny_model(tmp_path / "a", thinks=True)).thinks
    assert not find_model(save_tiny_model(tmp_path / "b", thinks=False)).thinks
