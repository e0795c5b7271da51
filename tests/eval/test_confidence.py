"""`nrt confidence`, and opening a model from a run or from its own files."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from nrt import train
from nrt.cli.chat import ChatSession, ChatSettings
from nrt.data import bare_row, null_row, trace_row
from nrt.errors import InputError
from nrt.eval.confidence import measure_confidence, print_confidences
from nrt.eval.reasoner import find_model, open_reasoner
from nrt.rollout import HFSampler, Request
from nrt.types import Message, Trace
from tests.cli.test_cli import nrt_command  # noqa: F401
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

QUESTION, ANSWER = "what is one plus two ?", "the sum is three"
SHORT = {"max_trace_tokens": 6, "max_answer_tokens": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_dir, pairs_file):  # noqa: F811
    """A trained run of a method with traces, and one of SFT."""
    from nrt.config import build_config

    folder, values = tmp_path_factory.mktemp("runs"), {}
    for method in ("nrt-gm", "sft"):
        values[method] = str(folder / method)
        train(build_config({
            "model": str(model_dir), "run": values[method], "method": method, "steps": 1, "batch": 2, "traces": 2,
            "max_trace_tokens": 4, "max_answer_tokens": 8, "threads": 1, "data": {"train": str(pairs_file)},
        }))  # fmt: skip
    return values


def plain_logp(reasoner, row):
    """Return the log-probabilities of the answer's tokens from one plain forward pass."""
    with torch.no_grad():
        logp = reasoner.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    answer = len(row.ids) - len(row.before_answer)
    places = range(len(row.ids) - answer, len(row.ids))
    return [logp[i - 1, row.ids[i]].item() for i in places]


def test_readings_are_products_over_the_answers_tokens(runs):
    reasoner = open_reasoner(runs["nrt-gm"], **SHORT)
    assert reasoner.thinks
    found = measure_confidence(reasoner, QUESTION, ANSWER, samples=3, seed=1)
    pair, markers = reasoner.pair(QUESTION, ANSWER), reasoner.generator.markers
    assert len(found.thoughts) == 3
    (traces,) = reasoner.generator.traces([pair], 3, seed=1)
    for thought, trace in zip(found.thoughts, traces, strict=True):
        *text, end = plain_logp(reasoner, trace_row(pair, trace, markers))
        assert thought.tokens == len(trace.ids)
        assert thought.finished == trace.finished
        assert thought.reading is not None
        assert thought.reading.probability == pytest.approx(math.exp(sum(text)), rel=1e-4)
        assert thought.reading.probability_ended == pytest.approx(
            math.exp(sum(text) + end), rel=1e-4
        )
    *text, end = plain_logp(reasoner, null_row(pair, markers))
    assert found.without is not None
    assert found.without.probability == pytest.approx(math.exp(sum(text)), rel=1e-4)
    assert found.without.end == pytest.approx(end, rel=1e-4)
    assert found.probability == pytest.approx(
        sum(t.reading.probability for t in found.thoughts if t.reading) / 3
    )


def test_without_samples_the_trace_is_the_greedy_one(runs):
    reasoner = open_reasoner(runs["nrt-gm"], **SHORT)
    first, second = (measure_confidence(reasoner, QUESTION, ANSWER, seed=seed) for seed in (0, 1))
    assert first == second
    assert len(first.thoughts) == 1
    ids = list(reasoner.pair(QUESTION).prompt_ids) + list(reasoner.generator.markers.opener)
    greedy = []
    while len(greedy) < 6 and not (greedy and greedy[-1] in reasoner.generator.stop_ids):
        with torch.no_grad():
            greedy.append(
                reasoner.model(torch.tensor([ids + greedy])).logits[0, -1].argmax().item()
            )
    ended = greedy[-1] in reasoner.generator.stop_ids
    assert first.thoughts[0].trace == reasoner.chat.decode(greedy[:-1] if ended else greedy)


def test_the_question_comes_after_the_system_message_of_training(runs):
    source = find_model(runs["nrt-gm"])
    assert source.config is not None
    plain = open_reasoner(source, **SHORT).pair(QUESTION).prompt_ids
    data = source.config.data.model_copy(update={"system": "so we add"})
    told = replace(source, config=source.config.model_copy(update={"data": data}))
    reasoner = open_reasoner(told, **SHORT)
    messages = (Message("system", "so we add"), Message("user", QUESTION))
    assert reasoner.pair(QUESTION).prompt_ids == reasoner.chat.encode_prompt(messages) != plain


def test_sft_answers_straight_after_the_prompt(runs):
    """SFT adds the markers to the vocabulary; run and exported template state that it does not think."""
    for name in (runs["sft"], f"{runs['sft']}/model"):
        reasoner = open_reasoner(name, **SHORT)
        assert not reasoner.thinks
        found = measure_confidence(reasoner, QUESTION, ANSWER)
        (thought,) = found.thoughts
        assert (thought.trace, found.without) == (None, None)
        *text, _ = plain_logp(reasoner, bare_row(reasoner.pair(QUESTION, ANSWER)))
        assert thought.reading is not None
        assert thought.reading.probability == pytest.approx(math.exp(sum(text)), rel=1e-4)


def test_exported_model_thinks(runs):
    assert open_reasoner(f"{runs['nrt-gm']}/model", **SHORT).thinks


def test_model_without_markers_answers_at_once(model_dir):  # noqa: F811
    reasoner = open_reasoner(str(model_dir), **SHORT)
    assert not reasoner.thinks
    assert (
        measure_confidence(reasoner, "<|think_end|> what is one ?").thoughts[0].trace is None
    )  # a marker in a text is text
    assert max(reasoner.pair("<|think_end|> what ?").prompt_ids) < reasoner.model.config.vocab_size


def test_a_given_trace_stands_before_the_answer(runs):
    reasoner = open_reasoner(runs["nrt-gm"], **SHORT)
    pair = reasoner.pair(QUESTION, ANSWER)
    trace = Trace(pair.answer_ids[:2], finished=True)
    start, end = reasoner.chat.start_id, reasoner.chat.end_id
    assert reasoner.row(pair, trace).ids == (
        *pair.prompt_ids,
        start,
        *trace.ids,
        end,
        *pair.answer_ids,
    )


def test_a_run_without_a_model_is_said(tmp_path, make_config):  # noqa: F811
    run = train(make_config(steps=1))
    run.model_dir.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no trained model yet"):
        open_reasoner(str(run.path))


def test_chat_with_sft_writes_no_markers(runs):
    out = io.StringIO()
    session = ChatSession(
        runs["sft"], ChatSettings(max_answer_tokens=4), Console(file=out, width=200)
    )
    prompts = []
    stream = session._stream
    session._stream = lambda request, style, label: (
        prompts.extend(request.prompts) or stream(request, style, label)
    )  # type: ignore[method-assign]
    session.ask(QUESTION)
    assert prompts == [session.reasoner.pair(QUESTION).prompt_ids]


def test_chat_answers_as_evaluation_does(runs):
    """Streamed token by token: the same trace and answer as sampled in a batch."""
    out = io.StringIO()
    settings = ChatSettings(max_trace_tokens=6, max_answer_tokens=8)
    session = ChatSession(runs["nrt-gm"], settings, Console(file=out, width=200))
    answer = session.ask(QUESTION)
    ((trace, ids),) = session.reasoner.respond(session.reasoner.pair(QUESTION))
    assert trace is not None
    assert answer == session._text(ids)
    assert session._text(trace.ids) in out.getvalue()
    assert session.messages[-1].content == answer


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "qa.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="is a file; give a run, or a model's folder or name"):
        find_model(str(tmp_path / "qa.jsonl"))


def test_trace_and_answer_fit_into_the_context(runs):
    """The model has 64 positions, and the caps would take more."""
    reasoner = open_reasoner(runs["nrt-gm"], max_trace_tokens=100, max_answer_tokens=100)
    pair = reasoner.pair(QUESTION)
    generator = reasoner.generator_for(pair)
    used = len(pair.prompt_ids) + 2 + generator.max_trace_tokens + generator.max_answer_tokens
    assert used == reasoner.context == 64
    measure_confidence(reasoner, QUESTION, "the sum is two")
    small = open_reasoner(runs["nrt-gm"], max_trace_tokens=4, max_answer_tokens=2)
    caps = small.generator_for(small.pair(QUESTION, "the sum is two"))
    assert (caps.max_trace_tokens, caps.max_answer_tokens) == (4, 2), "y* is longer, not the cap"
    long = " ".join(["one"] * 80)
    with pytest.raises(InputError, match="leaves no room for an answer in the context"):
        measure_confidence(reasoner, long, "two")
    with pytest.raises(InputError, match="begin a new conversation"):
        ChatSession(runs["nrt-gm"], ChatSettings(), Console(file=io.StringIO())).ask(long)


def test_chat_takes_caps_and_system_message_of_the_run(make_config):  # noqa: F811
    run = train(make_config(steps=1, data={"system": "add up ."}))
    console = Console(file=io.StringIO(), width=200)
    session = ChatSession(str(run.path), ChatSettings(), console)
    generator = session.reasoner.generator
    caps = (generator.max_trace_tokens, generator.max_answer_tokens)
    assert caps == (run.config.max_trace_tokens, run.config.max_answer_tokens)
    session.ask(QUESTION)
    assert [turn.role for turn in session.messages] == ["system", "user", "assistant"]
    assert session.messages[0].content == "add up ."
    settings = ChatSettings(max_trace_tokens=3, system="")
    plain = ChatSession(str(run.path), settings, console)
    assert plain.messages == []
    assert plain.reasoner.generator.max_trace_tokens == 3


def test_a_stream_is_a_sample(runs):
    """With noise and a temperature, also at the cap; the request's seed decides."""
    generator = open_reasoner(runs["nrt-gm"], **SHORT).generator
    prompt = open_reasoner(runs["nrt-gm"], **SHORT).pair(QUESTION).prompt_ids
    for seed in range(5):
        request = Request(
            [prompt], 1, generator.stop_ids, 7, seed, temperature=0.8, banned=frozenset({5})
        )
        ((sample,),) = generator.sampler.sample(request)
        assert isinstance(generator.sampler, HFSampler)
        assert tuple(generator.sampler.stream(request)) == sample.ids


def test_table_of_several_models(nrt_command, runs, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "160")
    arguments = [
        "confidence",
        runs["sft"],
        runs["nrt-gm"],
        "--question",
        QUESTION,
        "--max-trace-tokens",
        "4",
        "--max-answer-tokens",
        "4",
    ]
    status, out, _ = nrt_command(*arguments, "--answer", ANSWER)
    assert status == 0
    sft, gm = [line for line in out.splitlines() if line.startswith(("sft", "nrt-gm"))][:2]
    assert "no trace" in sft
    assert len(gm.split()) == 6
    status, out, _ = nrt_command(*arguments, "--json", "--samples", "2")
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [len(record["thoughts"]) for record in records] == [1, 2]
    assert all(record["probability"] is None for record in records)


def test_readings_of_an_answer_no_one_gave_are_not_shown(runs):
    out = io.StringIO()
    print_confidences(
        Console(file=out, width=100),
        [measure_confidence(open_reasoner(runs["nrt-gm"], **SHORT), QUESTION)],
    )
    assert "P(y*" not in out.getvalue()
