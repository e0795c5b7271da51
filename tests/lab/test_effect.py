"""The miniature shows the effect, from a base whose reasoning is latent: minutes a seed, so marked slow.

`pytest -m slow -s tests/lab/test_effect.py` prints what docs/miniature.md tabulates. NRT_CACHE keeps the bases between runs.
"""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import nrt
from nrt.config import build_config
from nrt.lab.base import BaseSettings, build_base, readout
from nrt.lab.demo import demo_config
from nrt.lab.world import distinct

WALKS = ("sum", "bot")


def run_with(base, folder, seed, **settings):
    """A run of the demo's config with other values; no checkpoints but the last."""
    config = demo_config(base, str(folder), seed=seed).model_dump(mode="json")
    return nrt.train(build_config(config, {"save_every": 0, **settings}))


def accuracies(run, key="heldout/accuracy"):
    last = run.metrics()[-1]
    return {family: round(last[f"{key}/{family}"], 3) for family in ("sum", "bot", "recall")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nrt_finds_latent_reasoning_and_sft_does_not(seed, tmp_path):
    base = build_base(BaseSettings(seed=seed))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    before = {r.family: r for r in readout(model, tokenizer, distinct("test", 300))}
    print(f"\nbase {seed}: {before}")
    for family in WALKS:
        assert before[family].worked <= 0.08, "reasoning must be latent, not common"
        assert before[family].greedy <= 0.2
        assert before[family].key_given_gold >= 0.9, "a base that cannot read a good trace cannot be taught to write one"

    run = run_with(base, tmp_path / "nrt", seed)
    after, null = accuracies(run), accuracies(run, "heldout/accuracy_null")
    print(f"nrt-ws-neg-log-p {seed}: {after}, after the null trace {null}")
    worked = {family: [m.get(f"worked/{family}") for m in run.metrics()[1::20]] for family in WALKS}
    print(f"share of worked traces every 20 steps: {worked}")
    for family in WALKS:
        assert after[family] >= 0.95
        assert null[family] <= 0.2

    for batch in (16, 64):
        for lr in (2e-4, 5e-4, 2e-3):
            sft = run_with(base, tmp_path / f"sft-{batch}-{lr}", seed, method="sft", batch=batch, optimizer={"lr": lr})
            print(f"sft {seed}, batch {batch}, lr {lr}: {accuracies(sft)}")
            for family in WALKS:
                assert accuracies(sft)[family] <= 0.2
