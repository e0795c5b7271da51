"""The packaged recipes: Table 6 as the paper prints it, SFT before NRT, and what `nrt plan` says of them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nrt import load_run
from nrt.cli import app
from nrt.config import load_config, packaged
from nrt.training import train
from nrt.training.resolve import resolve_method
from tests.training.conftest import model_dir, pairs_file  # noqa: F401

PAPER = Path(__file__).parents[3] / "shared" / "paper" / "native-reasoning-training.md"
MODELS = ("llama-3.2-3b", "mistral-7b-v0.3", "llama-3.1-8b")


def claims() -> list[tuple[str, str, str]]:
    """(recipe, command, verdict) of all headers."""
    found = []
    for name, file in packaged().items():
        text = file.read_text(encoding="utf-8")
        found += [(name, command, said) for command, said in re.findall(r"^#   (nrt plan .*)\n#     (.*)$", text, re.MULTILINE)]
    return found


@pytest.mark.parametrize(("name", "command", "said"), claims())
def test_headers_say_what_plan_says(capsys, name, command, said):
    app(shlex.split(command)[1:] + ["--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["verdict"] == said


def test_recipes_for_real_models_have_a_verdict():
    assert {name for name, _, _ in claims()} == {*MODELS, "single-24gb", "laptop"}


@pytest.mark.parametrize("recipe", ["paper", *MODELS])
def test_values_are_table_6(recipe):
    config = load_config(recipe)
    method = resolve_method(config.method, config.objective)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.weight_decay, optimizer.warmup) == (1e-5, "constant", 0.01, 0)
    assert (config.steps, config.batch, config.batch // config.updates_per_rollout) == (None, 256, 64)
    assert (config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens) == (4096, 2048, 4096 - 2048)
    assert (config.traces, method.ratio_clip, method.format_coef) == (8, (0.2, 0.28), 0.3)
    assert (method.centre, method.scale, method.ratio, method.answer_weight) == ("mean", "std", "ppo", "signal")


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper does not lie beside the checkout")
@pytest.mark.parametrize("recipe", ["paper", *MODELS])
def test_quotations_are_the_papers(recipe):
    words = plain(PAPER.read_text(encoding="utf-8"))
    header = packaged()[recipe].read_text(encoding="utf-8").replace("\n#", "\n")
    quoted = [plain(text) for text in re.findall(r'"([^"]+)"', header)]
    assert quoted
    for text in quoted:
        assert text in words, text


def test_sft_then_nrt(model_dir, pairs_file, tmp_path):  # noqa: F811
    """The two commands of the headers, with a tiny model, few pairs and no vLLM."""
    small = [f"data.train={pairs_file}", "data.columns.messages=null", "data.columns.source=kind", "batch=4", "steps=2", "traces=2",
             "max_prompt_tokens=16", "max_trace_tokens=5", "max_answer_tokens=8", "threads=1", "eval_every=0", "device=cpu",
             "sampler=hf"]  # fmt: skip
    sft = train(load_config("llama-3.2-3b", [f"model={model_dir}", "method=sft", *small, f"run={tmp_path / 'sft'}"]))
    nrt = train(load_config("llama-3.2-3b", [f"model={sft.model_dir}", *small, f"run={tmp_path / 'nrt'}"]))
    assert load_run(nrt.path).config.method == "nrt-ws-neg-log-p"
    vocabularies = [json.loads((run.model_dir / "config.json").read_text())["vocab_size"] for run in (sft, nrt)]
    assert vocabularies[0] == vocabularies[1]


def plain(text: str) -> str:
    """Without mark-up, and with one blank for any white space."""
    return " ".join(re.sub(r"[*$`\\]", "", text).replace("−", "-").lower().split())
