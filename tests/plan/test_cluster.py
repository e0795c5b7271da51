"""`nrt plan … engine=verl` by hand: rows, shards, rings, limits.

tests/verl/test_plan.py compares it with real workers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nrt.cli.app import app
from nrt.config import build_config
from nrt.errors import InputError
from nrt.objective import METHODS
from nrt.plan import PlanRequest, RowLengths, accelerator, plan_cluster
from nrt.plan.cluster import count_cluster_tokens, deal, make_cluster_plan
from nrt.plan.cluster_layout import layout_of
from nrt.plan.hardware import LINK_SHARE, ring_bytes
from nrt.plan.meta_model import meta_model
from nrt.plan.resident import pushed_bytes, shard_sizes, stage_parameters
from nrt.types import Role, Row

DOCS = Path(__file__).parents[2] / "docs"
METHOD = METHODS["nrt-ws-neg-log-p"]
H100 = accelerator("h100")


def cluster_config(nodes=1, per_node=8, verl=None, **settings):
    defaults = {
        "model": "llama-3.2-1b",
        "engine": "verl",
        "dtype": "bfloat16",
        "batch": 64,
        "nodes": nodes,
        "gpus_per_node": per_node,
    }
    return build_config(defaults | settings, {"verl": verl or {}})


def plan_of(config):
    return make_cluster_plan(PlanRequest(config, H100, config.nodes * config.gpus_per_node))


def megatron(tensor=1, pipeline=1, **settings):
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    actor = {"megatron": sizes | settings}
    return {"model_engine": "megatron", "actor_rollout_ref": {"actor": actor}}


def test_tokens_are_those_of_the_documentation_and_a_share_of_the_releases():
    """docs/performance.md: 200, 400 and 416 tokens, K = 8.

    The release samples an answer too, and reads the null trace with each trace. The model ends its
    traces there: END is sampled, one token more than in a trace at its cap.
    """
    config = build_config({"batch": 1, "initial_reference": False})
    tokens = count_cluster_tokens(config, METHOD, RowLengths(200, 400, 416))
    generated, release_generated = tokens.sampled + 8, 8 * (401 + 416)
    assert (generated, release_generated) == (3208, 6536)
    assert (tokens.scored, tokens.null, tokens.trained) == (8144 + 618, 618, 8144)
    forwarded = tokens.scored + tokens.trained
    release_forwarded = 8 * 1017 + 8 * 617 + 8 * 1017
    assert (forwarded, release_forwarded) == (16_906, 21_208)
    assert generated <= 0.5 * release_generated
    assert forwarded <= 0.8 * release_forwarded
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for number in (generated, release_generated, tokens.trained, forwarded, release_forwarded):
        assert f"{number:,}" in text


def test_rows_are_dealt_to_ranks():
    """33 rows on 4 ranks are 9 each, of which three are repetitions.

    A micro-batch of 250 tokens has room for two rows of 100, so there are five, filled evenly.
    """
    group = (Row((0,) * 50, (0,) * 50, (Role.ANSWER,) * 50, end_sampled=False),)
    config = cluster_config(per_node=4, batch=33, tokens_per_batch=250)
    passes = deal(group, layout_of(config, 4, 16), config)
    assert (passes.rows, passes.at_once, passes.batches) == (33 / 4, 3, 3)
    assert passes.imbalance == pytest.approx(36 / 33)
    config = cluster_config(per_node=4, batch=8, tokens_per_batch=50)
    passes = deal(group, layout_of(config, 4, 16), config)
    assert (passes.at_once, passes.batches) == (1, 2)


def test_shards_are_pieces_of_the_first_dimension():
    """128,258 rows over 8: 16,033 each, and 16,027 in the last."""
    model = meta_model(cluster_config())
    parameters = list(model.parameters())

    def table_shard(shards: int, rank: int) -> int:
        return shard_sizes(parameters, shards, rank)[0]

    assert [table_shard(8, rank) for rank in (0, 6, 7)] == [
        16_033 * 2048,
        16_033 * 2048,
        16_027 * 2048,
    ]
    assert table_shard(4096, 0) == 32 * 2048
    assert table_shard(4096, 4095) == 0  # 4,009 pieces of 32 rows are enough
    numbers = sum(p.numel() for p in parameters)
    assert sum(sum(shard_sizes(parameters, 8, rank)) for rank in range(8)) == numbers
    resident = plan_of(cluster_config()).memory.resident
    assert resident.masters == 4 * sum(shard_sizes(parameters, 8))
    assert resident.total == pytest.approx(16 * numbers / 8, rel=1e-3)


def test_megatron_divides_twice():
    """Weights and gradients by tensor and pipeline parallelism, the rest by the ranks as well."""
    config = cluster_config(nodes=2, verl=megatron(4, 2))
    model, layout = meta_model(config), layout_of(config, 16, 16)
    assert (layout.ranks, layout.gpus) == (2, 16)
    part, resident = stage_parameters(model, layout), plan_of(config).memory.resident
    table = 128_258 * 2048  # tied: on the first stage
    layers = sum(p.numel() for p in model.parameters()) - table - 2048
    assert part == -(-(layers // 2 + table + 2048) // 4)
    assert (resident.weights, resident.gradients) == (2 * part, 4 * part)
    assert resident.masters == 4 * (part // 2)
    assert resident.optimizer == 2 * resident.masters


def test_rings_by_hand():
    """Two nodes of four GPUs have four network cards of 50 GB/s each: 200 of NVLink's 450."""
    assert ring_bytes(80.0, 8) == 70.0
    assert ring_bytes(80.0, 1) == 0
    seconds = H100.ring_seconds(80e9, 8, nodes=2)
    assert seconds == pytest.approx(70e9 / (LINK_SHARE * 200e9))
    assert H100.ring_seconds(80e9, 8, nodes=1) == pytest.approx(70e9 / (LINK_SHARE * 450e9))
    assert H100.ring_seconds(80e9, 2, nodes=2) == pytest.approx(40e9 / (LINK_SHARE * 50e9))


def test_a_push_is_in_float32_under_fsdp2_and_in_bfloat16_under_megatron():
    sharded, tensor_parallel = cluster_config(), cluster_config(verl=megatron(8))
    model = meta_model(sharded)
    numbers = sum(p.numel() for p in model.parameters())
    table = model.get_output_embeddings().weight.numel()  # tied, and pushed twice
    assert pushed_bytes(model, 8) == pytest.approx(4 * (numbers + table), rel=1e-3)
    rate = LINK_SHARE * 450e9
    push = plan_of(sharded).seconds["push"]
    assert push == pytest.approx(4 * (numbers + table) * 7 / 8 / rate, rel=1e-3)
    assert plan_of(tensor_parallel).seconds["push"] == pytest.approx(2 * numbers * 7 / 8 / rate)


def test_where_it_breaks():
    """64 prompts of 8 rows in four updates: 128 rows an update, and 64 prompts for servers."""
    settings = {"updates_per_rollout": 4, "max_trace_tokens": 512, "max_prompt_tokens": 512}
    report = plan_cluster(cluster_config(**settings))
    assert report.plan.fits
    assert [plan.layout.gpus for plan in report.scaled] == [8, 32, 128, 512, 1024]
    breaks = {found["limit"]: (found["gpus"], found["value"]) for found in report.breaks}
    assert breaks["prompts"] == (128, 0.5)
    assert breaks["rows"] == (512, 0.25)
    efficiencies = [plan.efficiency for plan in report.scaled]
    assert efficiencies == sorted(efficiencies, reverse=True)


def test_a_slow_network_breaks():
    report = plan_cluster(cluster_config(nodes=16), network=0.5)
    assert report.breaks[0]["limit"] in ("network", "controller")
    assert "network" in [found["limit"] for found in report.breaks]


def test_the_controller_is_one_process():
    """The time does not depend on the number of GPUs, and grows with the batch."""
    report = plan_cluster(cluster_config())
    seconds = report.plan.seconds["controller"]
    assert {plan.seconds["controller"] for plan in report.scaled} == {seconds}
    larger = plan_of(cluster_config(batch=128)).seconds["controller"]
    assert larger == pytest.approx(2 * seconds)


def test_an_update_that_does_not_fit():
    config = cluster_config(model="llama-3.1-8b", gradient_checkpointing=False)
    report = plan_cluster(config)
    assert not report.plan.fits
    assert report.verdict.endswith("GiB at the highest, in the update")


def test_a_server_without_room_for_one_row():
    report = plan_cluster(cluster_config(model="llama-3.1-70b", nodes=8, verl=megatron(8, 4)))
    assert report.plan.memory.serving is not None
    assert report.plan.memory.serving.together == 0
    assert report.verdict.endswith("a rollout server has no room for one row")


def test_offloaded_parts_leave_room_for_rollouts():
    offload = {"param_offload": True, "optimizer_offload": True}
    verl = {"actor_rollout_ref": {"actor": {"fsdp_config": offload}}}
    kept, offloaded = plan_of(cluster_config()).memory, plan_of(cluster_config(verl=verl)).memory
    assert offloaded.offloaded == kept.resident.masters + kept.resident.optimizer
    assert offloaded.updating == kept.updating
    assert offloaded.sampling == kept.sampling - offloaded.offloaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verl": megatron(3)}, "8 GPUs cannot be divided"),
        ({"verl": megatron(1, 8), "model": "llama-3.2-3b"}, "28 layers"),
        (
            {"verl": {"actor_rollout_ref": {"rollout": {"tensor_model_parallel_size": 16}}}},
            "rollout servers",
        ),
        ({"lora": {"rank": 8}}, "lora.rank"),
    ],
)
def test_layouts_that_are_impossible_are_reported(settings, message):
    with pytest.raises(InputError, match=message):
        plan_cluster(cluster_config(**settings))


def test_the_config_sets_the_number_of_gpus(capsys):
    command = ["plan", "paper", "model=llama-3.2-1b", "engine=verl"]
    with pytest.raises(InputError, match="set nodes and gpus_per_node"):
        app([*command, "--gpus", "8"], standalone_mode=False)
    options = ["gpus_per_node=8", "--rows", "2560", "--price", "2", "--json"]
    app([*command, *options], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert record["layout"]["gpus"] == 8
    assert record["breaks"][0]["limit"] == "controller"
    hours = record["steps"] * record["seconds"]["total"] / 3600
    assert (record["steps"], record["hours"]) == (10, pytest.approx(hours))
    assert record["cost"] == pytest.approx(hours * 8 * 2)
