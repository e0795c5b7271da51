"""The miniature shows the effect, from a base whose reasoning is latent: minutes a seed, so marked slow.

`make test-slow` prints what docs/miniature.md tabulates. NRT_CACHE keeps the bases between runs.
"""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import nrt
from nrt.config import build_config
from nrt.lab.base import BaseSettings, build_base, readout
from nrt.lab.demo import demo_config
from nrt.lab.world import distinct

WALKS = ("sum", "bot")
SEEDS = (0, 1, 2)


def run_with(folder, seed, **settings):
    """A run of the demo's config with other values; no checkpoints but the last."""
    config = demo_config(build_base(BaseSettings(seed=seed)), str(folder), seed=seed).model_dump(mode="json")
    return nrt.train(build_config(config, {"save_every": 0, **settings}))


def accuracies(run, key="heldout/accuracy"):
    last = run.metrics()[-1]
    return {family: round(last[f"{key}/{family}"], 3) for family in ("sum", "bot", "recall")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_reasoning_is_latent_in_the_base(seed):
    base = build_base(BaseSettings(seed=seed))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    before = {line.family: line for line in readout(model, tokenizer, distinct("test", 300))}
    print(f"\nbase {seed}: {before}")
    for family in WALKS:
        assert before[family].worked <= 0.08, "reasoning must be latent, not common"
        assert before[family].greedy <= 0.2
        assert before[family].key_given_gold >= 0.9, "a base that cannot read a good trace cannot be taught to write one"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_nrt_finds_latent_reasoning(seed, tmp_path):
    run = run_with(tmp_path / "nrt", seed)
    after, null = accuracies(run), accuracies(run, "heldout/accuracy_null")
    print(f"\nnrt-ws-neg-log-p {seed}: {after}, after the null trace {null}")
    worked = {family: [m.get(f"worked/{family}") for m in run.metrics()[1::20]] for family in WALKS}
    print(f"share of worked traces every 20 steps: {worked}")
    for family in WALKS:
        assert after[family] >= 0.95
        assert null[family] <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("lr", [2e-4, 5e-4, 2e-3])
@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("seed", SEEDS)
def test_sft_does_not(seed, batch, lr, tmp_path):
    after = accuracies(run_with(tmp_path / "sft", seed, method="sft", batch=batch, optimizer={"lr": lr}))
    print(f"\nsft {seed}, batch {batch}, lr {lr}: {after}")
    for family in WALKS:  # chance is .10 and .17; of 18 runs one had .22 on 300 questions, .204 on 1,500 (docs/miniature.md)
        assert after[family] <= 0.25
