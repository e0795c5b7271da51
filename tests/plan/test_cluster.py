"""`nrt plan … engine=verl` by hand: rows that share nothing, shards, rings, where it breaks. Real workers: tests/verl/test_plan.py."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nrt.cli import app
from nrt.config import build_config
from nrt.errors import InputError
from nrt.objective import METHODS
from nrt.plan import Lengths, Question, ask_cluster
from nrt.plan.cluster import make_cluster_plan
from nrt.plan.cluster.layout import layout_of
from nrt.plan.cluster.limits import breaks
from nrt.plan.cluster.memory import shard_sizes, stage_numbers
from nrt.plan.cluster.traffic import FAR_HOP, HOP, SHARE, Ring, moved, push, ring
from nrt.plan.cluster.work import count_cluster_tokens, dealt
from nrt.plan.hardware import accelerator
from nrt.plan.shapes import empty_model

DOCS = Path(__file__).parents[2] / "docs"
METHOD = METHODS["nrt-ws-neg-log-p"]
H100 = accelerator("h100")
MEGATRON = {"model_engine": "megatron"}


def config(nodes=1, per_node=8, verl=None, **values):
    given = {"model": "llama-3.2-1b", "engine": "verl", "dtype": "bfloat16", "batch": 64, "nodes": nodes, "gpus_per_node": per_node}
    return build_config(given | values, {"verl": verl or {}})


def question(given, gpus=None, lengths=None):
    return Question(given, H100, gpus or given.nodes * given.gpus_per_node, lengths=lengths)


def megatron(tensor=1, pipeline=1, **actor):
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    return MEGATRON | {"actor_rollout_ref": {"actor": {"megatron": sizes | actor}}}


def test_tokens_are_the_tables_and_a_share_of_the_releases():
    """docs/performance.md: 200, 400 and 416 tokens, K = 8; the release samples an answer too, and reads the null trace once a trace. The
    model ends its traces there, so END is sampled: one token a trace that a trace at its cap does not have."""
    tokens = count_cluster_tokens(build_config({"batch": 1, "initial_reference": False}), METHOD, Lengths(200, 400, 416))
    generated, release = tokens.sampled + 8, 8 * (401 + 416)
    assert (generated, release) == (3208, 6536)
    assert (tokens.scored, tokens.null, tokens.trained) == (8144 + 618, 618, 8144)
    forwarded, releases = tokens.scored + tokens.trained, 8 * 1017 + 8 * 617 + 8 * 1017
    assert (forwarded, releases) == (16_906, 21_208)
    assert generated <= 0.5 * release
    assert forwarded <= 0.8 * releases
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for figure in (*map("{:,}".format, (generated, release, tokens.trained, forwarded, releases)), ".49 and forwards .797"):
        assert figure in text


def test_rows_as_ranks_take_them():
    """33 rows on 4 ranks are 9 each, the last three filled up; of 100 tokens, 250 at once: two in a micro-batch, so five of them."""
    passes = dealt(33, 100, 4, 250)
    assert (passes.rows, passes.at_once, passes.batches) == (33 / 4, 3, 3)
    assert passes.idle == pytest.approx(36 / 33)
    assert (dealt(8, 100, 4, 50).at_once, dealt(8, 100, 4, 50).batches) == (1, 2)


def test_shards_are_pieces_of_the_first_dimension():
    """128,258 rows over 8: 16,033 each, and 16,027 in the last."""
    model = empty_model(config())
    assert [shard_sizes(model.parameters(), 8, rank)[0] for rank in (0, 6, 7)] == [16_033 * 2048, 16_033 * 2048, 16_027 * 2048]
    assert [shard_sizes(model.parameters(), 4096, rank)[0] for rank in (0, 4095)] == [32 * 2048, 0]  # pieces of 32: 4,009 are enough
    whole = sum(p.numel() for p in model.parameters())
    assert sum(sum(shard_sizes(model.parameters(), 8, rank)) for rank in range(8)) == whole
    resident = make_cluster_plan(question(config())).memory.resident
    assert resident.masters == 4 * sum(shard_sizes(model.parameters(), 8))
    assert resident.total == pytest.approx(16 * whole / 8, rel=1e-3)


def test_megatron_divides_twice():
    """bfloat16 weights and float32 gradients by tensor and pipeline parallelism, the rest by the ranks as well."""
    given = config(nodes=2, verl=megatron(4, 2))
    model, layout = empty_model(given), layout_of(given, 16, 16)
    assert (layout.ranks, layout.copies, layout.gpus) == (2, 8, 16)
    part, resident = stage_numbers(model, layout), make_cluster_plan(question(given)).memory.resident
    table = 128_258 * 2048  # tied: on the first stage
    layers = sum(p.numel() for p in model.parameters()) - table - 2048
    assert part == -(-(layers // 2 + table + 2048) // 4)
    assert (resident.weights, resident.gradients, resident.masters) == (2 * part, 4 * part, 4 * (part // 2))
    assert resident.optimizer == 2 * resident.masters


def test_rings_by_hand():
    """Eight GPUs of two nodes, each of which has four network cards of 50 GB/s: 200 of NVLink's 450."""
    layout = layout_of(config(nodes=2, per_node=4), 8, 16)
    group = ring(layout, H100, 8)
    assert (group.nodes, group.rate) == (2, SHARE * 200e9)
    assert group.passing(80.0) == 70.0
    assert group.seconds(80e9, calls=3) == pytest.approx(70e9 / (SHARE * 200e9) + 3 * (6 * HOP + 2 * FAR_HOP))
    assert Ring(H100, 8, 1).rate == SHARE * 450e9
    assert Ring(H100, 1, 1).seconds(1e9) == 0
    apart = ring(layout, H100, 2, apart=4)  # one GPU of each node: four such rings leave a node
    assert (apart.nodes, apart.rate, moved(apart, 8.0, 1).node_bytes) == (2, SHARE * 50e9, 16.0)


def test_a_push_is_in_float32_under_fsdp2_and_in_bfloat16_under_megatron():
    given = config(verl=megatron(8))
    model = empty_model(given)
    numbers = sum(p.numel() for p in model.parameters())
    sharded, tensor = config(), layout_of(given, 8, 16)
    table = model.get_output_embeddings().weight.numel()  # tied, and handed over twice
    assert push(model, sharded, layout_of(sharded, 8, 16), H100).gpu_bytes == pytest.approx(4 * (numbers + table) * 7 / 8, rel=1e-3)
    assert push(model, given, tensor, H100).gpu_bytes == pytest.approx(2 * numbers * 7 / 8)


def test_where_it_breaks_first():
    """64 prompts of 8 rows in four updates: 128 rows an update, 64 servers' worth of prompts. 1,024 GPUs are beyond both."""
    _, plan, advice, scaled = ask_cluster(config(updates_per_rollout=4, max_trace_tokens=512, max_prompt_tokens=512))
    assert plan.fits
    assert advice == []
    assert [one.layout.gpus for one in scaled.fixed] == [8, 32, 128, 512, 1024]
    assert [one.batch for one in scaled.grown] == [64, 256, 1024, 4096, 8192]
    found = {one.limit: (one.gpus, one.value) for one in breaks(scaled.fixed)}
    assert found["prompts"] == (128, 0.5)
    assert found["rows"] == (512, 0.25)
    assert not {"rows", "prompts"} & {one.limit for one in breaks(scaled.grown)}
    assert [one.efficiency for one in scaled.fixed] == sorted((one.efficiency for one in scaled.fixed), reverse=True)


def test_the_controller_is_one_process():
    """Its time is the same on any number of GPUs, and grows with the batch."""
    _, plan, _, scaled = ask_cluster(config())
    assert {one.timed.clock.controller for one in scaled.fixed} == {plan.timed.clock.controller}
    assert scaled.grown[-1].timed.clock.controller == pytest.approx(128 * plan.timed.clock.controller)
    assert scaled.grown[-1].sent == 128 * plan.sent


def test_advice_ends_with_a_layout_that_fits():
    given = config(model="llama-3.1-8b", gradient_checkpointing=False)
    plan = make_cluster_plan(question(given))
    _, _, advice, _ = ask_cluster(given)
    assert not plan.fits
    assert advice[0].change == "gradient_checkpointing=true"
    assert [step.fits for step in advice] == [False] * (len(advice) - 1) + [True]


def test_a_server_that_cannot_hold_the_weights_is_told_of():
    given = config(model="llama-3.1-70b", nodes=8, verl=megatron(8, 4))
    _, plan, advice, _ = ask_cluster(given)
    assert plan.memory.serving is not None
    assert plan.memory.serving.together == 0
    assert "actor_rollout_ref.rollout.tensor_model_parallel_size" in " ".join(step.change for step in advice)


def test_offloaded_parts_leave_room_for_rollouts():
    away = {"actor_rollout_ref": {"actor": {"fsdp_config": {"param_offload": True, "optimizer_offload": True}}}}
    stays, goes = (make_cluster_plan(question(config(verl=verl))) for verl in ({}, away))
    resident = stays.memory.resident
    assert goes.memory.asleep == resident.masters + resident.optimizer
    assert goes.memory.host - stays.memory.host == 8 * goes.memory.asleep
    assert goes.memory.updating == stays.memory.updating
    assert goes.memory.sampling < stays.memory.sampling
    assert goes.timed.clock.update > stays.timed.clock.update


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"verl": megatron(3)}, "8 GPUs cannot be divided"),
        ({"verl": megatron(1, 8), "model": "llama-3.2-3b"}, "28 layers"),
        ({"verl": {"actor_rollout_ref": {"rollout": {"tensor_model_parallel_size": 16}}}}, "rollout servers"),
        ({"lora": {"rank": 8}}, "lora.rank"),
    ],
)
def test_what_cannot_be_laid_out_is_said(values, said):
    with pytest.raises(InputError, match=said):
        ask_cluster(config(**values))


def test_gpus_are_the_configs(capsys):
    with pytest.raises(InputError, match="set nodes and gpus_per_node"):
        app(["plan", "paper", "model=llama-3.2-1b", "engine=verl", "--gpus", "8"], standalone_mode=False)
    app(["plan", "paper", "model=llama-3.2-1b", "engine=verl", "gpus_per_node=8", "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert record["layout"]["gpus"] == 8
    assert record["breaks"]["fixed_batch"][0]["limit"]


def commands() -> list[str]:
    """Those of docs/planning.md that stand over a table of a ladder."""
    return re.findall(r"^nrt plan .*engine=verl.*$", (DOCS / "planning.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_the_page_says_what_the_command_says(capsys, command):
    """Its tables' rows, from the JSON."""
    app([*shlex.split(command.partition("#")[0])[1:], "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    text = (DOCS / "planning.md").read_text(encoding="utf-8")
    assert record["verdict"] in text
    for rung in (*record["fixed_batch"], *record["grown_batch"]):
        assert table_row(rung) in text


def table_row(rung) -> str:
    phases = (rung["seconds"][name] for name in ("rollout", "scoring", "update", "push", "controller", "total"))
    times = " | ".join(f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in phases)
    return f"| {rung['layout']['gpus']:,} | {rung['batch']:,} | {rung['memory']['peak'] / 2**30:.1f} | {times} | {rung['efficiency']:.1%} |"
