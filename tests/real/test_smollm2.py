"""SmolLM2-135M-Instruct through everything a user does: `make test-real`.

A model made for tests has few layers and random weights. Each test here covers a fault that only a real model showed, or a command that
must work on one.
"""

import io
import json
import math

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import nrt
from nrt.cli.app import app
from nrt.cli.chat import ChatSession, ChatSettings
from nrt.data import trace_row
from nrt.errors import InputError, Interrupted
from nrt.lab.pretrained import gguf_file
from nrt.models import load_model
from nrt.scoring import PackedScorer, PaddedScorer
from nrt.trainer.agreement import compare_sampler
from nrt.trainer.collect import sample_groups, scored_rows
from nrt.trainer.metrics import PhaseTimer
from nrt.trainer.setup import prepare
from tests.eval.benchmarks import write_benchmarks
from tests.steps import collect, local_engine
from tests.trainer.test_train import InterruptAt

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def parts(make_config, tmp_path_factory):
    return prepare(make_config(tmp_path_factory.mktemp("parts") / "run"))


@pytest.fixture(scope="module")
def rows(parts):
    """Eight rows of the data: two prompts with three sampled traces and the null trace each."""
    groups = sample_groups(parts.learner, parts.data.pairs[:2], PhaseTimer(), seed=5, answer_seed=5)
    return [
        row for group in groups for row in (*group.rows[:3], scored_rows(parts.learner, group)[-1])
    ]


def test_prompts_are_shared_and_markers_are_chosen(parts):
    """An absolute bound on nonsense ids refused this plain Llama, and every step took four times as long."""
    engine = local_engine(parts)
    assert isinstance(engine.scorer, PackedScorer)
    assert not parts.padded_by_surprise
    assert engine.scorer_choice.tolerance < 1e-2
    assert parts.notes[0] == "each prompt is forwarded once for all of its traces"
    assert [note.partition(" ")[0] for note in parts.notes[1:]] == [
        "<|think_start|>",
        "<|think_end|>",
    ], "traces share keys and values"


def test_packed_is_padded(parts, rows):
    model = local_engine(parts).model
    some = [model.model.layers[i].self_attn.q_proj.weight for i in (0, 15, 29)] + [
        model.model.norm.weight
    ]
    found = []
    for scorer in (PackedScorer(), PaddedScorer(0)):
        scores = scorer(model, rows)
        found.append(
            (
                scores.logp_N.detach(),
                scores.entropy_N,
                torch.autograd.grad(scores.logp_N.sum(), some),
            )
        )
    (ours, our_entropy, our_gradients), (theirs, their_entropy, their_gradients) = found
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    torch.testing.assert_close(our_entropy, their_entropy, atol=1e-3, rtol=0)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


def test_the_sampler_is_the_scorer(parts):
    gap = compare_sampler(parts.learner.policy, list(parts.data.pairs[:2]), 4, 16)
    assert 0 < gap.mean < 1e-4
    assert gap.largest < 1e-2


def test_equal_rows_make_no_advantages(parts):
    """Equal traces have equal rewards, and no trace contains START."""
    rollout = collect(parts.learner, parts.draw, 2, seed=1)
    for group in rollout.groups:
        assert not any(parts.chat.start_id in trace.ids for trace in group.traces)
        rewards = {}
        assert group.credit is not None
        for trace, reward in zip(group.traces, group.credit.reward_K.tolist(), strict=True):
            assert rewards.setdefault(trace.ids, reward) == reward


def test_three_steps(run):
    steps = run.metrics()
    assert [m["step"] for m in steps] == [0, 1, 2, 3]
    assert steps[1]["optim/lr"] == pytest.approx(0.5e-4), (
        "the first update of a warm-up moves the weights"
    )
    for metrics in steps[1:]:
        assert all(math.isfinite(value) for value in metrics.values() if value is not None)
        assert metrics["sampler/logp_gap"] < 1e-4
        assert metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["trace/unfinished"] == pytest.approx(
            metrics["trace/end_token"] + metrics["trace/capped"]
        )
        assert metrics["guard/skipped"] == 0
    assert {w["kind"] for w in run.warnings()} == {"held-out-is-trained"}, "the fixture's"
    assert steps[-1]["heldout/accuracy_served"] <= steps[-1]["heldout/accuracy"]


def test_a_run_that_was_cut_goes_on_bit_for_bit(run, make_config, tmp_path):
    folder = tmp_path / "cut"
    with pytest.raises(Interrupted):
        nrt.train(make_config(folder), listener=InterruptAt(2))
    again = nrt.train(make_config(folder, resume=str(folder)))
    left, right = (load_file(one.model_dir / "model.safetensors") for one in (run, again))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_export_and_chat(run, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(run.path), str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "README.md").is_file()
    model, tokenizer = load_model(str(out), dtype=torch.float32, device="cpu")
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 49_154
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    talk = ChatSession(str(out), ChatSettings(max_trace_tokens=12, max_answer_tokens=12), console)
    answer = talk.ask("What is 2 plus 3?")
    assert isinstance(answer, str)
    assert "<|" not in answer
    assert printed.getvalue().strip()


def test_eval(run, tmp_path):
    """Five rows a benchmark at most, nine benchmarks. After three steps few traces end, and an unfinished one has no answer."""
    data = write_benchmarks(tmp_path / "data")
    arguments = [
        "eval",
        str(run.path),
        "--data",
        str(data),
        "--limit",
        "5",
        "--max-trace-tokens",
        "8",
        "--max-answer-tokens",
        "16",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "gsm8k" in result.output.lower()
    assert (tmp_path / "out").is_dir()


def test_confidence(run):
    question = [
        "--question",
        "What is 2 plus 3?",
        "--answer",
        "The answer is 5.",
        "--max-trace-tokens",
        "12",
        "--max-answer-tokens",
        "12",
    ]
    result = CliRunner().invoke(app, ["confidence", str(run.path), *question, "--json"])
    assert result.exit_code == 0, result.output
    line = json.loads(result.output.strip().splitlines()[-1])
    assert 0 < line["probability"] < 1


def test_report(run, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(run.path), "-o", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "What number do you get?" in text
    result = CliRunner().invoke(app, ["report", str(run.path), "--text"])
    assert result.exit_code == 0, result.output


def test_a_gguf_file_that_is_cut_off(tmp_path):
    whole = gguf_file().read_bytes()
    for size in (2_000, 5_000_000, 90_000_000):
        file = tmp_path / f"{size}.gguf"
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cannot be read as GGUF.*is the file complete"):
            load_model(str(file), dtype=torch.float32, device="cpu")


def test_rows_of_the_data_are_what_was_meant(parts):
    """The template's own turns, one END, no second BOS, and the token that ends the turn last."""
    pair = parts.data.pairs[0]
    text = parts.chat.decode(pair.prompt_ids)
    assert text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>user") == 3
    traces = parts.learner.policy.traces([pair], 1, seed=0)[0]
    row = trace_row(pair, traces[0], parts.learner.policy.markers)
    assert row.ids.count(parts.chat.end_id) == 1
    assert row.ids[-1] == parts.chat.end_of_turn_id
