"""`nrt plan`: rows and tokens of a step, what fits, what to change, hours and cost."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from nrt.cli.app import app
from nrt.config import build_config, load_config
from nrt.errors import InputError
from nrt.objective import METHODS
from nrt.plan import PlanRequest, RowLengths, accelerator, advise, make_plan
from nrt.plan.hardware import GPUS
from nrt.plan.memory_parts import VllmMemory
from nrt.plan.meta_model import BUILT_IN, meta_model
from nrt.plan.work import count_tokens, group_rows
from nrt.scoring.packing import packed_tokens
from nrt.trainer.resolve import resolve_names

METHOD = METHODS["nrt-ws-neg-log-p"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "planning.md"
GIB = 2**30


def request_for(gpu: str = "h100", memory: float | None = None, gpus: int = 1, **settings):
    config = build_config({"dtype": "bfloat16"} | settings)
    return PlanRequest(config, accelerator(gpu, memory), gpus)


def test_a_shared_prompt_counts_once():
    """The example of docs/performance.md."""
    config = build_config({"batch": 1, "initial_reference": False})
    tokens = count_tokens(config, METHOD, RowLengths(1000, 300, 200))
    assert tokens.trained == 1000 + 8 * (300 + 200 + 1) + 200 + 1 == 5209
    assert tokens.unshared == 8 * 1501 + 1201
    assert (tokens.scored, tokens.null, tokens.sampled) == (0, 201, 2400)


def test_later_updates_score_first_and_train_without_the_null_trace():
    """One forward scores and trains the first two of eight prompts."""
    config = build_config({"batch": 8, "updates_per_rollout": 4, "initial_reference": False})
    first = group_rows(config, METHOD, RowLengths(10, 20, 30), prompt_index=1)
    assert (first.scored, packed_tokens(first.trained)) == ((), 10 + 8 * 51 + 31)
    rows = group_rows(config, METHOD, RowLengths(10, 20, 30), prompt_index=2)
    assert packed_tokens(rows.scored) == 10 + 8 * 51 + 31
    assert packed_tokens(rows.trained) == 10 + 8 * 51
    tokens = count_tokens(config, METHOD, RowLengths(10, 20, 30))
    assert tokens.scored == 6 * (10 + 8 * 51 + 31)
    assert tokens.trained == 8 * (10 + 8 * 51) + 2 * 31
    sft = group_rows(config, METHODS["sft"], RowLengths(10, 20, 30))
    assert (sft.scored, sft.initial, packed_tokens(sft.trained)) == ((), (), 39)


def test_a_second_policy_reads_up_to_the_last_sampled_token():
    """`x START z`, in one call with `x y*`; a teacher reads `x y* START z END ŷ` instead.

    Of a tail, all but the last token are forwarded: 20 of START and 20 trace tokens.
    """
    config = build_config({"batch": 8, "initial_reference": False})
    latro = group_rows(config, METHODS["latro"], RowLengths(10, 20, 30))
    assert packed_tokens(latro.initial) == 10 + 8 * 20
    assert latro.initial in latro.scoring_passes(config)
    with_bare = config.model_copy(update={"initial_reference": True})
    shared = group_rows(with_bare, METHODS["latro"], RowLengths(10, 20, 30))
    assert packed_tokens(shared.initial) == 10 + 29 + 8 * 20
    sdft = group_rows(config, METHODS["sdft"], RowLengths(10, 20, 30))
    assert packed_tokens(sdft.reference) == (10 + 30) + 8 * 51


def test_sampled_answers_are_scored_with_the_update():
    """nover: the rows with y* and the null trace first, then one pass over the sampled answers."""
    config = build_config({"batch": 8, "initial_reference": False})
    nover = group_rows(config, METHODS["nover"], RowLengths(10, 20, 30))
    assert nover.scored == ()
    assert packed_tokens(nover.answers) == 10 + 8 * 51 + 31
    assert packed_tokens(nover.trained) == 10 + 8 * 51
    dropping = group_rows(config, METHODS["rlpr-original"], RowLengths(10, 20, 30))
    assert packed_tokens(dropping.scored) == 10 + 8 * 51


COSTS = {
    "nrt-ws-neg-log-p": 1.0,
    "latro": 1.23,
    "nover": 1.30,
    "rlvr": 1.30,
    "rlpr-original": 1.61,
    "sdft": 1.62,
    "opsd": 1.62,
}
"""docs/methods.md, "Cost"."""


@pytest.mark.parametrize("method", METHODS)
def test_a_step_costs_what_the_documentation_says(method):
    """Forwarded tokens, those of an update three times, relative to `nrt-ws-neg-log-p`."""
    config = build_config({"batch": 8, "traces": 8, "tokens_per_batch": 16384})

    def cost(name):
        tokens = count_tokens(config, METHODS[name], RowLengths(150, 300, 100))
        return tokens.scored + 3 * tokens.trained

    relative = cost(method) / cost("nrt-ws-neg-log-p")
    assert round(relative, 2) == (0.07 if method == "sft" else COSTS.get(method, 1.0))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("llama-3.2-1b", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_built_in_models_have_their_published_sizes(name, parameters):
    """Without the markers' two rows, which an untied model has in two tables."""
    model = meta_model(build_config({"model": name}))
    architecture = BUILT_IN[name.rpartition("/")[2].lower()]
    tables = 1 if architecture.get("tie_word_embeddings") else 2
    marker_rows = 2 * architecture["hidden_size"] * tables
    assert sum(p.numel() for p in model.parameters()) - marker_rows == parameters


def test_a_model_is_sharded_if_a_replica_takes_too_much():
    small = request_for(model="llama-3.2-1b", gpus=8)
    large = request_for(model="llama-3.2-3b", gpus=8)
    assert make_plan(small).parallel == "ddp"
    assert make_plan(large).parallel == "fsdp"
    replicas = PlanRequest(large.config, large.gpu, gpus=8, parallel="ddp")
    assert make_plan(replicas).parallel == "ddp"


def test_advice_adds_up_and_ends_with_a_run_that_fits():
    settings = {"batch": 256, "updates_per_rollout": 4, "overlap": True}
    settings["gradient_checkpointing"] = False
    request = request_for("h200", model="llama-3.2-3b", dtype="float32", **settings)
    plan = make_plan(request)
    advice = advise(request, plan)
    assert not plan.fits
    names = [step.change.partition("=")[0] for step in advice]
    assert names[:2] == ["sampler_rows", "gradient_checkpointing"]
    assert [step.fits for step in advice] == [False] * (len(advice) - 1) + [True]
    changes = {}
    for step in advice:
        name, _, value = step.change.partition("=")
        changes[name] = int(value) if value.isdigit() else {"true": True, "false": False}[value]
    changed = build_config(request.config.model_dump(), changes)
    assert make_plan(PlanRequest(changed, request.gpu)).fits


@pytest.mark.parametrize("method", ["latro", "opsd", "nrt-gm"])
def test_a_run_may_take_the_advice(method):
    """What a plan suggests is not refused by training."""
    request = request_for("rtx4090", model="llama-3.2-1b", method=method)
    values = [step.change for step in advise(request, make_plan(request))]
    assert ("initial_reference=false" in values) == (method == "nrt-gm")
    changed = load_config(None, ["model=llama-3.2-1b", f"method={method}", *values])
    resolve_names(changed)


def test_if_resident_memory_is_too_much_it_is_reduced_first():
    request = request_for("rtx4090", model="llama-3.1-8b")
    advice = advise(request, make_plan(request))
    changes = [step.change for step in advice]
    assert changes[:3] == ["initial_reference=false", "lora.rank=16", "quantize=nf4"]
    assert advice[-1].fits


def test_a_run_that_no_setting_makes_fit():
    request = request_for("rtx4090", memory=6, model="llama-3.1-8b", lora={"rank": 8})
    assert not any(step.fits for step in advise(request, make_plan(request)))


def vllm_plan(gpu: str = "h100", **settings):
    defaults = {"model": "llama-3.2-1b", "batch": 64, "sampler": "vllm"}
    defaults["gradient_checkpointing"] = True
    return make_plan(request_for(gpu, **defaults | settings))


def test_vllm_takes_what_the_trainer_leaves():
    plan = vllm_plan()
    rollout, resident = plan.memory.rollout, plan.memory.resident
    assert isinstance(rollout, VllmMemory)
    assert rollout.weights == resident.weights
    assert resident.sampler == 0, "it sleeps during updates"
    assert rollout.taken == pytest.approx(rollout.share * plan.capacity, abs=1)
    assert 0.98 * plan.usable < plan.memory.sampling <= plan.usable
    assert plan.memory.updating == vllm_plan(sampler="hf").memory.updating


def test_vllm_takes_no_more_than_it_needs():
    """128 rows of at most 8,194 tokens of 32 KiB: 32 GiB of keys and values, in blocks of 16."""
    plan = vllm_plan(batch=16)
    rollout = plan.memory.rollout
    assert isinstance(rollout, VllmMemory)
    spare, rounding = 1, 0.01 * plan.capacity / 2**30
    assert 32 + spare <= rollout.cache / 2**30 <= 32.1 + spare + rounding
    assert rollout.rows == 128
    assert plan.memory.sampling < 0.8 * plan.usable


def test_vllm_without_sleep_takes_half_of_it_all_the_time():
    plan = vllm_plan(vllm={"sleep": 0})
    awake, asleep = plan.memory, vllm_plan().memory
    assert isinstance(awake.rollout, VllmMemory)
    assert isinstance(asleep.rollout, VllmMemory)
    left = asleep.rollout.share - awake.resident.gradients / plan.capacity
    assert awake.rollout.share == pytest.approx(left / 2, abs=0.01)
    assert awake.resident.sampler == awake.rollout.taken
    assert awake.sampling == awake.resident.total - awake.resident.gradients + awake.reserve
    assert awake.updating == awake.resident.total + awake.reserve + awake.update.total


def test_the_help_names_every_gpu(capsys):
    """The documentation's page of commands is made from it."""
    with pytest.raises(SystemExit):
        app(["plan", "--help"], standalone_mode=True)
    printed = " ".join(re.findall(r"\w+", capsys.readouterr().out))
    for name in GPUS:
        assert f" {name} " in printed


def test_gpus_have_the_memory_that_torch_reports():
    """Less than the data sheet says, in GiB: the driver keeps some, with ECC on GDDR more."""
    sizes = {"t4": 16, "l4": 24, "a10g": 24, "a6000": 48, "rtx3090": 24, "rtx4090": 24}
    sizes |= {"rtx5090": 32, "l40s": 48, "a100": 80, "h100": 80, "h200": 141, "b200": 180}
    assert sizes.keys() == GPUS.keys()
    for name, size in sizes.items():
        assert 0.9 * size < GPUS[name].memory / 2**30 < size, name


def test_a_run_that_fits_leaves_seven_percent_free():
    plan = vllm_plan()
    assert plan.fits
    assert plan.memory.peak <= plan.usable == int(0.93 * plan.capacity)
    assert not replace(plan, usable=plan.memory.peak - 1).fits


def test_overlap_adds_rollout_and_update():
    """The sampler goes on while the trainer updates, so all micro-batches are recomputed."""
    alone = make_plan(request_for(model="qwen2.5-0.5b", gradient_checkpointing=True)).memory
    plan = make_plan(request_for(model="qwen2.5-0.5b", overlap=True)).memory
    assert plan.rollout is not None
    copy = plan.resident.sampler
    assert plan.peak == plan.updating == plan.sampling == alone.updating + copy + plan.rollout.total


def test_a_checkpoint_gathers_the_shards():
    request = request_for(model="qwen2.5-0.5b", sampler="vllm", vllm={"urls": ("http://there:1",)})
    plan = make_plan(replace(request, gpus=2, parallel="fsdp"))
    memory = plan.memory
    whole = 2 * plan.parameters
    assert memory.gathered == whole
    assert memory.saving == (
        memory.resident.total - memory.resident.gradients + memory.reserve + whole
    )
    assert make_plan(replace(request, gpus=2, parallel="ddp")).memory.gathered == 0


def test_the_machines_memory_holds_each_process_model_or_a_checkpoint():
    request = request_for(model="qwen2.5-0.5b", dtype="bfloat16")
    plan = make_plan(replace(request, parallel="ddp"))
    # weights, masters, AdamW's moments
    assert plan.memory.host == pytest.approx((2 + 4 + 8) * plan.parameters, rel=1e-5)
    several = make_plan(replace(request, gpus=16, parallel="ddp"))
    assert several.memory.host == 16 * 2 * plan.parameters  # while all load
    short = request.config.model_copy(update={"tokens_per_batch": 512})
    assert make_plan(PlanRequest(short, accelerator("cpu"))).memory.host == 0


def test_rollout_servers_take_no_memory_here():
    plan = vllm_plan(vllm={"urls": ("http://there:1",)})
    assert plan.memory.rollout is None
    assert plan.memory.resident.sampler == 0
    assert plan.seconds.rollout > 0


def test_a_share_of_vllm_that_is_too_large_is_reset():
    settings = {"sampler": "vllm", "gradient_checkpointing": True, "vllm": {"memory": 0.6}}
    request = request_for(model="llama-3.2-3b", **settings)
    advice = advise(request, make_plan(request))
    assert [step.change for step in advice] == ["vllm.memory=null"]
    assert advice[0].fits


def test_a_plan_without_room_for_vllm_does_not_fit():
    assert not vllm_plan(model="llama-3.1-8b", gpu="h200").fits


def test_caps_beyond_the_models_positions_are_told():
    assumptions = make_plan(request_for(model="qwen2.5-0.5b", max_prompt_tokens=32_768)).assumptions
    assert any("has positions for 32,768; nrt data check looks" in line for line in assumptions)
    assumptions = make_plan(request_for(model="qwen2.5-0.5b", max_prompt_tokens=256)).assumptions
    assert not any("has positions for" in line for line in assumptions)


def test_hours_follow_from_steps_and_seconds():
    config = build_config({"model": "llama-3.2-3b", "dtype": "bfloat16", "batch": 256})
    request = PlanRequest(config, accelerator("h100"), gpus=8, rows=204_800, price=2.0)
    plan = make_plan(request)
    assert plan.steps == 800
    assert plan.hours is not None
    assert plan.hours == pytest.approx(800 * plan.seconds.total / 3600)
    assert plan.cost == pytest.approx(plan.hours * 8 * 2.0)
    assert make_plan(PlanRequest(config, accelerator("h100"))).hours is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "model=FOLDER"),
        ({"model": "/nowhere/at/all"}, "no config.json"),
        ({"model": "llama-3.2-3b", "method": "nrt-mg"}, "nrt-gm"),
    ],
)
def test_invalid_names_are_reported(settings, message):
    with pytest.raises(InputError, match=message):
        make_plan(request_for(gpus=2, **settings))


def test_gpus_are_known_by_name():
    with pytest.raises(InputError, match="did you mean 'h100'"):
        accelerator("h10")
    assert accelerator("h100", memory=94).memory == 94 * GIB


def documented() -> list[tuple[str, str]]:
    """Return (command, printed text) of the plans in docs/planning.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    plans = []
    for block in re.finditer(r"```text\n(.*?)```", text, re.DOTALL):
        commands = re.findall(r"^nrt plan .*$", text[: block.start()], re.MULTILINE)
        plans.append((commands[-1], block[1]))
    return plans


@pytest.mark.parametrize(("command", "printed"), documented())
def test_the_documentation_has_what_the_command_prints(capsys, monkeypatch, command, printed):
    monkeypatch.setenv("COLUMNS", "100")
    app(shlex.split(command)[1:], standalone_mode=False)
    output = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert output[: output.index("Assumed")] == printed.splitlines()
