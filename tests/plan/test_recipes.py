"""The packaged recipes: the paper's Table 6, SFT before NRT, and the plans in their headers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nrt import load_run
from nrt.cli.app import app
from nrt.config import load_config, packaged_recipes
from nrt.trainer import train
from nrt.trainer.resolve import resolve_method
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

PAPER = Path(__file__).parents[3] / "shared" / "paper" / "native-reasoning-training.md"
MODELS = ("llama-3.2-3b", "mistral-7b-v0.3", "llama-3.1-8b")


def planned() -> list[tuple[str, str, str]]:
    """Return (recipe, command, verdict) of the plans in all headers."""
    plans = []
    for name, file in packaged_recipes().items():
        text = file.read_text(encoding="utf-8")
        for command, verdict in re.findall(r"^#   (nrt plan .*)\n#     (.*)$", text, re.MULTILINE):
            plans.append((name, command, verdict))
    return plans


@pytest.mark.parametrize(("name", "command", "verdict"), planned())
def test_headers_have_the_verdict_of_the_plan(capsys, name, command, verdict):
    app(shlex.split(command)[1:] + ["--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict
    peak, memory = map(float, re.findall(r"([\d.]+) (?:of|GiB)", verdict)[:2])
    fits = verdict.startswith("fits")
    assert fits == (peak <= 0.93 * memory + 0.1), "7 % stay free in every phase; 0.1 is rounding"


CHECKS = Path(__file__).parents[2] / "docs" / "results" / "checks.md"
HOURS = re.findall(
    r"^\| `([^`]+)` \| (\d+) × H100 \| ([\d.]+) \| ([\d.]+) \|$",
    CHECKS.read_text(encoding="utf-8"),
    re.MULTILINE,
)


# A plan takes seconds, so only the first row is in the default suite
@pytest.mark.parametrize(
    ("recipe", "gpus", "hours", "rollout"),
    [HOURS[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in HOURS[1:])],
)
def test_planned_hours_are_the_plans(capsys, recipe, gpus, hours, rollout):
    """Those of the table under "Planned hours of the recipes"."""
    lengths = "--prompt 300 --trace 500 --answer 416 --rows 204800"
    command = f"plan {recipe} --gpu h100 --gpus {gpus} {lengths}"
    app(command.split(), standalone_mode=False)
    out = capsys.readouterr().out
    assert f": {hours} hours, " in out
    assert re.search(rf"^ rollout +[\d.]+ +{re.escape(rollout)} *$", out, re.MULTILINE), out


def test_recipes_for_real_models_have_a_verdict():
    assert {name for name, _, _ in planned()} == {*MODELS, "single-24gb", "laptop"}


@pytest.mark.parametrize("recipe", ["paper", *MODELS])
def test_values_are_table_6(recipe):
    config = load_config(recipe)
    method, optimizer = resolve_method(config.method, config.objective), config.optimizer
    assert (optimizer.lr, optimizer.schedule) == (1e-5, "constant")
    assert (optimizer.weight_decay, optimizer.warmup) == (0.01, 0)
    assert (config.steps, config.batch, config.traces) == (None, 256, 8)
    assert config.batch // config.updates_per_rollout == 64
    assert (config.max_prompt_tokens, config.max_trace_tokens) == (4096, 2048)
    assert config.max_answer_tokens == 4096 - 2048
    assert (method.ratio_clip, method.format_coef) == ((0.2, 0.28), 0.3)
    assert (method.centre, method.scale) == ("mean", "std")
    assert (method.ratio, method.answer_weight) == ("ppo", "signal")


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper is not beside the checkout")
@pytest.mark.parametrize("recipe", ["paper", *MODELS])
def test_quotations_are_the_papers(recipe):
    paper = plain(PAPER.read_text(encoding="utf-8"))
    header = packaged_recipes()[recipe].read_text(encoding="utf-8").replace("\n#", "\n")
    quotations = [plain(text) for text in re.findall(r'"([^"]+)"', header)]
    assert quotations
    for quotation in quotations:
        assert quotation in paper, quotation


def test_sft_then_nrt(model_dir, pairs_file, tmp_path):  # noqa: F811
    """The two commands of the headers, with a tiny model, few pairs and no vLLM."""
    small = [
        f"data.train={pairs_file}",
        "data.columns.messages=null",
        "data.columns.source=kind",
        "batch=4",
        "steps=2",
        "traces=2",
        "max_prompt_tokens=16",
        "max_trace_tokens=5",
        "max_answer_tokens=8",
        "threads=1",
        "eval_every=0",
        "device=cpu",
        "sampler=hf",
    ]
    sft_settings = [f"model={model_dir}", "method=sft", *small, f"run={tmp_path / 'sft'}"]
    sft = train(load_config("llama-3.2-3b", sft_settings))
    nrt_settings = [f"model={sft.model_dir}", *small, f"run={tmp_path / 'nrt'}"]
    nrt = train(load_config("llama-3.2-3b", nrt_settings))
    assert load_run(nrt.path).config.method == "nrt-ws-neg-log-p"
    sft_model, nrt_model = (
        json.loads((run.model_dir / "config.json").read_text()) for run in (sft, nrt)
    )
    assert sft_model["vocab_size"] == nrt_model["vocab_size"]


def plain(text: str) -> str:
    """Return text without mark-up, in lower case, with single spaces."""
    return " ".join(re.sub(r"[*$`\\]", "", text).replace("−", "-").lower().split())
