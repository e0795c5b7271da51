"""Training with the real vLLM in this process, on a CPU: weights pushed in memory, and what the run says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nrt
from nrt.config import dump_yaml
from nrt.errors import InputError, Interrupted, RunError
from nrt.models import save_config
from nrt.rollout import Request
from tests.tiny import tiny_model
from tests.trainer.test_train import InterruptAt, assert_same_run
from tests.vllm.common import HEADS, MEMORY, make_config, move, save_trainable, scores

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from nrt.rollout.vllm import VLLMSampler  # noqa: E402

ROOT = Path(__file__).parents[2]

LONG = tuple(3 + (7 * i + i * i) % 38 for i in range(300))
"""More than two blocks of vLLM's cache on a CPU, which have 128 tokens."""
PROMPTS = [LONG, (*LONG[:290], 5), (8,), (9, 10, 11)]

HOSTILE = {
    "do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.5, "repetition_penalty": 3.0, "max_new_tokens": 2, "min_p": 0.3,
    "eos_token_id": [2, 5, 6, 7, 8, 9], "suppress_tokens": list(range(20, 30)),
}  # fmt: skip


def request(**changes) -> Request:
    return Request(
        **{"prompts": PROMPTS, "n": 3, "stop_ids": frozenset({2}), "cap": 12, "seed": 1} | changes
    )


def fresh(model, tmp_path) -> VLLMSampler:
    save_config(model, tmp_path)
    return VLLMSampler(str(tmp_path), dtype="float32", memory=MEMORY, dummy=True)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied-mha", "qwen2", "qwen3"])
def test_sampled_log_probabilities_are_the_scorers_after_each_push(architecture, tmp_path):
    """Tied heads or not; and keys and values of the weights before are never used again."""
    model = tiny_model(architecture, **HEADS)
    sampler = fresh(model, tmp_path)
    with pytest.raises(RunError, match="no weights"):
        sampler.sample(request())
    for version in range(6):
        sampler.load_weights(model.named_parameters(), version)
        for greedy in (False, True):
            groups = sampler.sample(request(greedy=greedy))
            for prompt, group in zip(PROMPTS, groups, strict=True):
                assert len(group) == 3
                for sample in group:
                    assert sample.version == version
                    assert len(sample.ids) == 12 or sample.ids[-1] == 2
                    assert sample.logps == pytest.approx(
                        scores(model, prompt, sample.ids), abs=1e-4
                    )
        move(model)


def test_the_cache_is_used_within_a_version_and_forgotten_after_it(tmp_path):
    model = tiny_model("llama-tied-mha", **HEADS)
    sampler = fresh(model, tmp_path)
    params = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}

    def cached() -> int:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        (output,) = sampler.llm.generate(
            [{"prompt_token_ids": list(LONG)}], SamplingParams(**params), use_tqdm=False
        )
        return output.num_cached_tokens

    for version in range(2):
        sampler.load_weights(model.named_parameters(), version)
        assert (cached(), cached()) == (0, 256)
        move(model)


def test_a_version_that_is_there_is_not_pushed_again(tmp_path):
    model = tiny_model(**HEADS)
    sampler = fresh(model, tmp_path)
    sampler.load_weights(model.named_parameters(), 7)
    before = sampler.sample(request())
    move(model)
    sampler.load_weights(model.named_parameters(), 7)
    assert sampler.sample(request()) == before
    sampler.load_weights(model.named_parameters())
    assert sampler.sample(request()) != before


def test_a_hostile_generation_config_changes_nothing(tmp_path):
    model = tiny_model(**HEADS)

    def sampled(config):
        model.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        return VLLMSampler(str(tmp_path), dtype="float32", memory=MEMORY).sample(
            request(stop_ids=frozenset())
        )

    found = sampled({}), sampled(HOSTILE)
    assert found[0] == found[1]
    assert {len(sample.ids) for group in found[1] for sample in group} == {12}
    for sample in found[1][0]:
        assert sample.logps == pytest.approx(scores(model, LONG, sample.ids), abs=1e-4)


def test_log_probabilities_are_of_what_was_sampled_from(tmp_path):
    """At temperature 2, of the softmax of half the logits."""
    model = tiny_model(**HEADS)
    sampler = fresh(model, tmp_path)
    sampler.load_weights(model.named_parameters())
    ((sample,),) = sampler.sample(request(prompts=[(8, 9)], n=1, temperature=2.0))
    with torch.no_grad():
        logits = model(torch.tensor([[8, 9, *sample.ids]])).logits[0, 1:-1]
    expected = (logits / 2).log_softmax(-1)[range(len(sample.ids)), list(sample.ids)]
    assert sample.logps == pytest.approx(expected.tolist(), abs=1e-4)


def test_too_long_is_said(tmp_path):
    sampler = fresh(model := tiny_model(**HEADS), tmp_path)
    sampler.load_weights(model.named_parameters())
    with pytest.raises(InputError, match=r"raise vllm\.context"):
        sampler.sample(request(cap=300))


@pytest.fixture(scope="module")
def trainable(tmp_path_factory):
    return save_trainable(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "settings", [{}, {"updates_per_rollout": 2}, {"method": "rlpr-original", "profile": "paper"}]
)
def test_a_run(trainable, tmp_path, settings):
    run = nrt.train(make_config(trainable, tmp_path, **settings))
    updates = settings.get("updates_per_rollout", 1)
    for record in run.metrics()[1:]:
        assert record["sampler/logp_gap"] <= record["sampler/logp_gap_max"] < 1e-4
        assert abs(record["sampler/kl"]) < 1e-6
        assert record["sampler/behind"] == 0
    assert [group["traces"][0]["version"] for group in run.traces()] == [
        updates * step for step in range(6)
    ]


def test_interrupted_and_resumed(trainable, tmp_path):
    whole = nrt.train(make_config(trainable, tmp_path))
    run = tmp_path / "cut"
    with pytest.raises(Interrupted):
        nrt.train(make_config(trainable, tmp_path, run=str(run)), listener=InterruptAt(4))
    assert_same_run(
        whole, nrt.train(make_config(trainable, tmp_path, run=str(run), resume=str(run)))
    )


def test_killed_and_resumed(trainable, tmp_path):
    """The command, by SIGKILL; vLLM lives in the same process, so nothing of it is left either."""
    config = make_config(trainable, tmp_path, steps=12, save_every=2)
    whole, cut = nrt.train(config), tmp_path / "cut"
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "nrt", "train"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "recipe.yaml"), f"run={cut}"], stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not ((cut / "metrics.jsonl").exists() and steps_of(cut) >= 5):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert steps_of(cut) < 12
    subprocess.run([*command, f"resume={cut}"], check=True, stdout=subprocess.DEVNULL)
    assert_same_run(whole, nrt.load_run(cut))


def test_overlap(trainable, tmp_path):
    """The next step's traces are sampled during the update, in another thread, with weights one update old."""
    run = nrt.train(make_config(trainable, tmp_path, overlap=True))
    assert [group["traces"][0]["version"] for group in run.traces()] == [0, 0, 1, 2, 3, 4]
    gaps = [record["sampler/logp_gap"] for record in run.metrics()[1:]]
    assert gaps[0] < 1e-4 < min(gaps[1:])


def steps_of(run) -> int:
    return max((record["step"] for record in nrt.load_run(run).metrics()), default=0)


def torchrun(recipe) -> subprocess.CompletedProcess[str]:
    """Two processes of the command, to their end."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "nrt",
        "train",
        str(recipe),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_under_torchrun_each_process_has_an_engine(trainable, tmp_path):
    """Each samples for its prompts, while the trainer's weights are in shards; the traces are those of one process."""
    config = make_config(trainable, tmp_path)
    alone = nrt.train(config)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        dump_yaml(config.model_copy(update={"run": str(tmp_path / "two"), "parallel": "fsdp"}))
    )
    said = torchrun(recipe)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr
    run = nrt.load_run(tmp_path / "two")
    assert [ids(group) for group in run.traces()] == [ids(group) for group in alone.traces()]
    assert all(record["sampler/logp_gap_max"] < 1e-4 for record in run.metrics()[1:])


def test_under_torchrun_a_pair_that_disagrees_is_refused_in_one_line(trainable, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(make_config(trainable, tmp_path, sampler_tolerance=1e-9)))
    said = torchrun(recipe)
    assert said.stderr.count("error: sampler and trainer disagree") == 1
    assert not (tmp_path / "run").exists()


def ids(group):
    return [trace["ids"] for trace in group["traces"]]


def test_two_types_are_measured_and_corrected(trainable, tmp_path):
    cap = {"objective": {"importance_cap": 1.001}, "vllm": {"memory": MEMORY, "dtype": "bfloat16"}}
    run = nrt.train(make_config(trainable, tmp_path, **cap))
    for record in run.metrics()[1:]:
        assert 1e-5 < record["sampler/logp_gap"] < 0.05
        assert 0 < record["sampler/kl"] < 1e-2
        assert 0 < record["sampler/capped"] < 1


def test_a_pair_that_disagrees_is_refused_before_anything_is_written(trainable, tmp_path):
    settings = {"sampler_tolerance": 1e-5, "vllm": {"memory": MEMORY, "dtype": "bfloat16"}}
    with pytest.raises(
        InputError, match=r"Let both compute in one type \(dtype=float32, vllm.dtype=bfloat16\)"
    ):
        nrt.train(make_config(trainable, tmp_path, **settings))
    assert not (tmp_path / "run").exists()
