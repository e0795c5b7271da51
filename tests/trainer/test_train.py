"""Whole runs of a tiny model: what they leave behind, that they repeat, and that an interruption leaves no mark."""

import json
import os
import signal
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nrt
from nrt.data import null_row, trace_row
from nrt.engine.interface import UpdateStats
from nrt.errors import InputError, Interrupted
from nrt.models import load_model, save_model
from nrt.run.metrics import describe
from nrt.system.manifest import write_manifest
from nrt.trainer.heldout import summary
from nrt.trainer.listener import NullListener
from nrt.trainer.metrics import update_metrics
from nrt.trainer.setup import prepare
from nrt.types import Trace
from tests.trainer.conftest import write_pairs


def timeless(metrics):
    """All but what depends on the clock."""
    return [
        {k: v for k, v in record.items() if not k.startswith(("time/", "speed/"))}
        for record in metrics
    ]


def weights(run):
    return load_file(run.model_dir / "model.safetensors")


def assert_same_run(a, b):
    assert json.dumps(timeless(a.metrics())) == json.dumps(timeless(b.metrics()))
    assert a.traces() == b.traces()
    assert a.heldout_steps() == b.heldout_steps()
    assert [a.heldout(s) for s in a.heldout_steps()] == [b.heldout(s) for s in b.heldout_steps()]
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def test_a_run_leaves_a_whole_folder(make_config):
    run = nrt.train(make_config(log_traces=2))
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3]
    assert run.heldout_steps() == [0, 2, 3]
    assert [folder.name for folder in run.checkpoints()] == ["step-000002", "step-000003"]
    assert len(run.traces()) == 2 * 3
    group = run.traces()[0]
    assert len(group["traces"]) == 3
    assert (
        len(group["answer_tokens"])
        == len(group["base_logp"])
        == len(group["traces"][0]["answer_logp"])
    )
    assert nrt.load_run(run.path).config == run.config


def test_a_run_without_a_name_takes_a_free_one(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(steps=1, **{"data.valid": None}).model_copy(update={"run": None})
    paths = [nrt.train(config).path.as_posix() for _ in range(2)]
    assert paths == ["runs/run", "runs/run-2"]
    assert nrt.load_run("run-2").config.run == "run-2"


def test_every_metric_is_documented(make_config):
    run = nrt.train(make_config())
    for record in run.metrics():
        for name in record.keys() - {"step"}:
            assert describe(name).meaning, name


def test_the_model_folder_is_an_ordinary_one(make_config):
    run = nrt.train(make_config())
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run.model_dir),
        AutoTokenizer.from_pretrained(run.model_dir),
    )
    assert "<|think_start|>" in tokenizer.get_vocab()
    chat = [{"role": "user", "content": "what is one plus two ?"}]
    opened = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    closed = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False, open_trace=False
    )
    assert opened == closed + "<|think_start|>"
    ids = tokenizer(opened, return_tensors="pt", add_special_tokens=False)
    assert model.generate(**ids, max_new_tokens=4).shape[1] >= ids["input_ids"].shape[1]


@pytest.mark.parametrize("method", ["nrt-ws-neg-log-p", "verifree", "sft"])
def test_same_seed_same_run(make_config, tmp_path, method):
    a = nrt.train(make_config(method=method, run=str(tmp_path / "a"), updates_per_rollout=2))
    torch.rand(7)  # the global random state is nobody's business
    b = nrt.train(make_config(method=method, run=str(tmp_path / "b"), updates_per_rollout=2))
    assert_same_run(a, b)


def test_another_seed_another_run(make_config, tmp_path):
    a = nrt.train(make_config(run=str(tmp_path / "a")))
    b = nrt.train(make_config(run=str(tmp_path / "b"), seed=1))
    assert timeless(a.metrics()) != timeless(b.metrics())


class InterruptAt(NullListener):
    """Sends this process a real SIGINT at the n-th phase of the run."""

    def __init__(self, n):
        self.left = n

    def phase(self, name):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("method", ["nrt-ws-inv-p", "sft"])
def test_interrupted_anywhere_and_resumed(make_config, tmp_path, method):
    """Two updates a rollout: stops before a rollout, between its updates, and while evaluating or saving."""
    settings = {"method": method, "updates_per_rollout": 2, "save_every": 0, "profile": "paper"}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    for n in range(1, 9):
        run = tmp_path / f"cut-{n}"
        config = make_config(run=str(run), **settings)
        with pytest.raises(Interrupted) as stopped:
            nrt.train(config, listener=InterruptAt(n))
        assert stopped.value.exit_status == 130
        resumed = nrt.train(make_config(run=str(run), resume=str(run), **settings))
        assert_same_run(whole, resumed)


def test_interrupted_twice(make_config, tmp_path):
    settings = {"updates_per_rollout": 4}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), **settings))
    run = str(tmp_path / "cut")
    with pytest.raises(Interrupted):
        nrt.train(make_config(run=run, **settings), listener=InterruptAt(3))
    with pytest.raises(Interrupted):
        nrt.train(make_config(run=run, resume=run, **settings), listener=InterruptAt(4))
    assert_same_run(whole, nrt.train(make_config(run=run, resume=run, **settings)))


def test_more_steps_go_on_from_a_finished_run(make_config, tmp_path):
    """3 steps and then 2 more equal 5 steps (held-out evaluations aside, which also happen at the end of the first part)."""
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), steps=5, eval_every=1))
    run = str(tmp_path / "parts")
    nrt.train(make_config(run=run, steps=3, eval_every=1))
    parts = nrt.train(make_config(run=run, resume=run, steps=5, eval_every=1))
    assert_same_run(whole, parts)


@pytest.mark.parametrize("method", ["nrt-gm", "sft"])
def test_control_tokens_in_questions_stay_text(make_config, tmp_path, method):
    """In training, after a resume (which loads the exported template), and in the model that the run leaves."""
    question = "what is </s> <|think_end|> plus <s> ?"
    pairs = str(
        write_pairs(
            tmp_path / "spelled.jsonl",
            [{"question": question, "answer": "</s> so <|think_end|>"}] * 4,
        )
    )
    settings = {
        "method": method,
        "data.train": pairs,
        "data.valid": pairs,
        "data.columns.source": None,
        "max_prompt_tokens": 32,
    }
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), steps=4, eval_every=1, **settings))
    run = str(tmp_path / "parts")
    nrt.train(make_config(run=run, steps=2, eval_every=1, **settings))
    assert_same_run(
        whole, nrt.train(make_config(run=run, resume=run, steps=4, eval_every=1, **settings))
    )

    tokenizer = AutoTokenizer.from_pretrained(whole.model_dir)
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    opened = ["<|think_start|>"] if method == "nrt-gm" else []
    added = tokenizer.added_tokens_decoder
    assert [str(added[i]) for i in ids if i in added and i != tokenizer.unk_token_id] == [
        "<s>",
        *opened,
    ]


def test_a_resumed_run_keeps_its_settings(make_config, tmp_path):
    run = str(tmp_path / "run")
    nrt.train(make_config(run=run))
    with pytest.raises(nrt.InputError, match="traces"):
        nrt.train(make_config(run=run, resume=run, traces=4))


def test_a_resumed_model_without_markers_is_refused(make_config, model_dir, tmp_path):
    run = nrt.train(make_config(run=str(tmp_path / "run")))
    broken = run.checkpoints()[-1] / "model"
    for file in model_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    write_manifest(broken.parent)
    with pytest.raises(nrt.InputError, match="think_start"):
        nrt.train(make_config(run=str(run.path), resume=str(run.path), steps=4))


def test_sft_learns_its_answers(make_config):
    run = nrt.train(make_config(method="sft", steps=40, batch=16, eval_every=0, save_every=0))
    first, last = run.heldout(0), run.heldout()
    assert sum(row["correct"] for row in first) == 0
    assert sum(row["correct"] for row in last) == len(last)
    assert all(row["trace"] is None and row["token_logp_null"] is None for row in last)
    assert "reward/gain" not in run.metrics()[-1]


def test_answers_after_swapped_traces_are_those_of_the_other_prompt(make_config):
    """The control by hand: the next question's trace in this question's row."""
    parts = prepare(make_config(**{"heldout.swapped": True, "data.columns.source": None}))
    assert parts.heldout is not None
    policy, pairs = parts.learner.policy, parts.heldout.pairs
    records = parts.heldout(seed=1)
    traces = [trace for (trace,) in policy.traces(pairs, 1, seed=1, greedy=True)]
    rows = [
        trace_row(pair, traces[(i + 1) % len(pairs)], policy.markers)
        for i, pair in enumerate(pairs)
    ]
    for record, pair, (logp, _) in zip(records, pairs, policy.score(rows), strict=True):
        assert record.logp_swapped == pytest.approx(
            logp[-len(pair.answer_ids) :].mean().item(), abs=1e-6
        )
        assert record.correct_swapped is not None
    assert {"heldout/accuracy_swapped", "heldout/logp_swapped"} <= set(summary(records))


def test_an_empty_trace_is_the_null_trace_however_kernels_round(make_config, monkeypatch):
    """Scores that grow with a row's place would make equal rows differ."""
    parts = prepare(make_config(max_trace_tokens=1))
    heldout, policy = parts.heldout, parts.learner.policy
    assert heldout is not None
    empty = [[Trace((), finished=False)] for _ in heldout.pairs]
    monkeypatch.setattr(type(heldout.policy), "traces", lambda *_, **__: empty)
    score = type(policy).score

    def drifting(self, rows, **settings):
        scores = score(self, rows, **settings)
        return [(logp + 1e-3 * i, entropy) for i, (logp, entropy) in enumerate(scores)]

    monkeypatch.setattr(type(policy), "score", drifting)
    assert summary(heldout(seed=1))["heldout/beats_null"] == 0


def test_markers_in_held_out_answers_are_counted(make_config, monkeypatch):
    """The answers are set here: every second one has END in it."""
    parts = prepare(make_config())
    assert parts.heldout is not None
    end = parts.learner.policy.markers.end_id

    def answers(rows, **_):
        return [(5, end, 6) if i % 2 else (5, 6) for i in range(len(rows))]

    monkeypatch.setattr(
        type(parts.learner.policy), "answers", lambda self, *a, **k: answers(*a, **k)
    )
    records = parts.heldout(seed=1)
    assert [record.answer_marker for record in records] == [
        bool(i % 2) for i in range(len(records))
    ]
    expected = sum(i % 2 for i in range(len(records))) / len(records)
    assert summary(records)["heldout/answer_marker"] == expected


def test_held_out_references_are_kept_token_by_token(make_config):
    """Their texts make up the reference and the end of the turn; log-probabilities are those after the null trace, by hand."""
    parts = prepare(make_config())
    assert parts.heldout is not None
    policy, pairs = parts.learner.policy, parts.heldout.pairs
    scored = policy.score([null_row(pair, policy.markers) for pair in pairs])
    for record, pair, (logp, _) in zip(parts.heldout(seed=1), pairs, scored, strict=True):
        assert (
            "".join(record.answer_tokens)
            .replace(" ", "")
            .startswith(record.reference.replace(" ", ""))
        )
        assert len(record.answer_tokens) == len(record.token_logp) == len(pair.answer_ids)
        assert record.token_logp_null is not None
        assert record.token_logp_null == pytest.approx(
            logp[-len(pair.answer_ids) :].tolist(), abs=1e-5
        )
        assert record.logp_null == pytest.approx(fmean(record.token_logp_null), abs=1e-5)


NOTHING_HELD_OUT = {"data.valid": None, "heldout.checker": None}


def test_one_trace_warns(make_config, capsys):
    run = nrt.train(make_config(traces=1, steps=1, **NOTHING_HELD_OUT))
    assert "traces=1: a group of one has no advantage" in capsys.readouterr().out
    assert [w["kind"] for w in run.warnings()] == ["single-trace"]
    assert run.metrics()[-1]["group/no_variance"] == 1.0
    assert run.metrics()[-1]["loss/trace"] == 0.0


def test_long_rows_are_dropped_and_counted(make_config, tmp_path, capsys):
    """An answer has one token a word and the end of the turn; a prompt has <s> and the line break besides its words."""
    answers = ["the sum is two", "one", "what is the sum so we add them", "two"]
    questions = ["what ?", "what ?", "what ?", "so " * 20 + "?"]
    rows = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    file = write_pairs(tmp_path / "long.jsonl", rows)
    settings = {
        "data.train": str(file),
        **NOTHING_HELD_OUT,
        "data.columns.source": None,
        "max_answer_tokens": 5,
        "steps": 1,
        "batch": 2,  # rows that are left
    }
    run = nrt.train(make_config(run=str(tmp_path / "drop"), **settings))
    assert [(w["kind"], w["count"]) for w in run.warnings()] == [
        ("dropped-prompts", 1),
        ("dropped-answers", 1),
    ]
    out = capsys.readouterr().out
    assert "1 of 4 rows left out: their prompts are longer than max_prompt_tokens=" in out
    assert "1 of 4 rows left out: their answers are longer than max_answer_tokens=5" in out
    assert run.metrics()[-1]["data/dropped_answers"] == 1
    run = nrt.train(
        make_config(run=str(tmp_path / "cut"), **settings, **{"data.truncate_answers": True})
    )
    assert [(w["kind"], w["count"]) for w in run.warnings()] == [
        ("dropped-prompts", 1),
        ("truncated-answers", 1),
    ]


def test_an_observer_adds_metrics(make_config):
    run = nrt.train(make_config(observer="tests.trainer.test_train:count_groups", steps=1))
    assert run.metrics()[-1]["worked/groups"] == 4


def count_groups(rollout, tokenizer):
    return {"worked/groups": len(rollout.groups)}


def test_the_trainers_own_sampler_agrees_with_the_scorer(make_config):
    """The probe before the first step, the measures of each, and weights that stay 1: the run is the one without them."""
    plain = nrt.train(make_config())
    run = nrt.train(
        make_config(
            run=str(plain.path) + "-2", sampler_tolerance=1e-5, **{"objective.importance_cap": 2.0}
        )
    )
    for record, other in zip(run.metrics()[1:], plain.metrics()[1:], strict=True):
        assert record["sampler/logp_gap"] <= record["sampler/logp_gap_max"] < 1e-4
        assert (record["sampler/capped"], record["sampler/behind"]) == (0, 0)
        assert record["reward/mean"] == pytest.approx(other["reward/mean"], rel=1e-3)


def test_sampler_and_trainer_agree_at_another_temperature(make_config, tmp_path):
    """Entropy is that of the distribution from which traces are sampled: lower than at 1."""
    entropies = []
    for temperature in (1.0, 0.5):
        settings = {"steps": 2, "temperature": temperature, "sampler_tolerance": 1e-5}
        config = make_config(run=tmp_path / f"at-{temperature}", **settings)
        first, second = nrt.train(config).metrics()[1:]
        assert second["sampler/logp_gap_max"] < 1e-4
        assert first["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
        entropies.append(first["trace/entropy"])
    assert entropies[1] < 0.9 * entropies[0]


def test_a_sampler_that_disagrees_is_refused(make_config, tmp_path):
    with pytest.raises(InputError, match="sampler and trainer disagree"):
        nrt.train(make_config(sampler_tolerance=1e-9))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": True, "objective.importance_cap": 2.0}, "unset objective.importance_cap"),
        ({"method": "rlvr", "objective.importance_cap": 2.0}, "rlvr trains on sampled answers too"),
        ({"method": "rlvr", "vllm.strict": False}, "rlvr trains on sampled answers too"),
        ({"method": "rlvr", "objective.answer_weight": 1}, "rlvr trains on sampled ones; unset it"),
        ({"method": "nover", "objective.answer_coef": 0.5}, "answer_coef weighs reference answers"),
        ({"method": "jepo", "overlap": True}, "overlap=true .* which jepo does not correct for"),
        (
            {"method": "log-prob", "sampler": "vllm", "vllm.strict": False},
            "unset it, or set objective.ratio=ppo",
        ),
        ({"objective.ratio": "none", "overlap": True}, "earlier weights"),
        (
            {"method": "jepo", "updates_per_rollout": 4},
            "updates_per_rollout=4 trains on traces of earlier weights, .* set it to 1, or set",
        ),
        (
            {"method": "log-prob", "objective.answer_weight": "reward"},
            "rewards of log-prob can be negative: the answer would be trained away",
        ),
        (
            {"objective.answer_weight": 1, "objective.signal_floor": 0.1},
            "signal_floor is for answer weights that are the signal",
        ),
        ({"vllm.urls": ["http://one:1"]}, "vllm.urls names rollout servers, which sampler=vllm"),
        ({"gpus_per_node": 4}, "nodes and gpus_per_node are for engine=verl"),
    ],
)
def test_corrections_that_cannot_be(make_config, settings, message):
    with pytest.raises(InputError, match=message):
        prepare(make_config(**settings))


def test_a_sampler_that_is_not_installed_is_told_before_the_model_is_loaded(
    make_config, monkeypatch
):
    monkeypatch.setattr("nrt.rollout.vllm.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install vllm"):
        prepare(make_config(sampler="vllm", model="no-such-folder"))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_more_steps_stretch_the_schedule_from_the_first_update_on(make_config, tmp_path, schedule):
    """Resumed after 2 of 2 steps with 4, the third step has the rate that 4 steps give it."""
    settings = {"optimizer.schedule": schedule, "save_every": 0, "eval_every": 0}
    whole = nrt.train(make_config(run=str(tmp_path / "whole"), steps=4, **settings))
    run = str(tmp_path / "run")
    nrt.train(make_config(run=run, steps=2, **settings))
    resumed = nrt.train(make_config(run=run, resume=run, steps=4, **settings))
    rates = [[m["optim/lr"] for m in each.metrics() if m["step"] > 2] for each in (whole, resumed)]
    assert rates[0] == rates[1]
    assert all(rate > 0 for rate in rates[0])


def test_the_speed_of_a_rollout_counts_sampled_answers(make_config, tmp_path):
    metrics = nrt.train(make_config(method="rlvr", steps=1, eval_every=0)).metrics()[-1]
    tokens = metrics["speed/rollout"] * metrics["time/rollout"]
    traces = metrics["trace/length"] * 4 * 3
    assert tokens > traces + 0.9 * 4 * 3, "each answer has a token or more"


def test_a_saved_model_stops_where_its_template_ends_a_turn(make_config, model_dir, tmp_path):
    """Base models often name another end token than their template writes."""
    folder = tmp_path / "base"
    model, tokenizer = load_model(str(model_dir), dtype=torch.float32, device="cpu")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    model.resize_token_embeddings(len(tokenizer))
    template = tokenizer.chat_template.replace("eos_token", "'<|turn|>'")
    save_model(model, tokenizer, folder, template=template)
    run = nrt.train(make_config(model=str(folder), steps=1))
    saved = json.loads((run.path / "model" / "generation_config.json").read_text())
    turn_end = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert sorted(saved["eos_token_id"]) == sorted([tokenizer.eos_token_id, turn_end])


def test_held_out_data_that_measure_nothing_new_are_told(make_config, capsys):
    """The fixture's held-out data are its training data."""
    run = nrt.train(make_config(steps=1))
    assert "held-out-is-trained" in {warning["kind"] for warning in run.warnings()}
    assert "warning: data.valid is data.train" in capsys.readouterr().out


def test_a_checker_without_held_out_data_is_told(make_config):
    run = nrt.train(make_config(steps=1, **{"data.valid": None}))
    assert "nothing-held-out" in {warning["kind"] for warning in run.warnings()}


def test_a_relative_path_is_looked_for_where_the_run_was_started(
    make_config, pairs_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(pairs_file.read_text())
    settings = {"data.train": "pairs.jsonl", "data.valid": None, "heldout.checker": None}
    nrt.train(make_config(run=str(tmp_path / "run"), steps=1, **settings))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(InputError, match="relative to the folder where the run was started"):
        nrt.resume(str(tmp_path / "run"), steps=2)


def test_the_ratio_is_a_mean_over_tokens():
    rest: Any = {
        "total": 0.0,
        "trace": 0.0,
        "answer": 0.0,
        "format": 0.0,
        "grad_norm": 0.0,
        "lr": 0.0,
    }
    few = UpdateStats(**rest, ratio_mean=2.0, ratio_clipped=1.0, tokens=9, sampled=1)
    many = UpdateStats(**rest, ratio_mean=1.0, ratio_clipped=0.0, tokens=9, sampled=3)
    metrics = update_metrics([few, many], seconds=1.0)
    assert (metrics["ratio/mean"], metrics["ratio/clipped"]) == (1.25, 0.25)
