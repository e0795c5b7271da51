"""Plan `engine=verl`: memory of each GPU and seconds of each phase, on any number of GPUs.

verl forwards each row by itself, with its prompt. Neither verl nor Ray is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from nrt.config import Config
from nrt.engine.counting import TokenCost, count_update
from nrt.engine.fsdp import gathered_bytes
from nrt.engine.weights import layers_of
from nrt.errors import InputError
from nrt.objective import Method
from nrt.plan import memory, resident, work
from nrt.plan.cluster_layout import Layout, layout_of
from nrt.plan.memory import Workload
from nrt.plan.memory_parts import ClusterMemory, Serving
from nrt.plan.planning import PlanRequest, decoding_steps, make_workload, reading_seconds
from nrt.plan.work import GroupRows, PhaseValues, RowLengths, StepTokens
from nrt.types import Row

GPU_COUNTS = (8, 32, 128, 512, 1024)
"""Numbers of GPUs for which a recipe is planned, beside its own."""

ROW_SECONDS, TOKEN_SECONDS = 5e-4, 3e-7
"""Processor time of the controller for a row and for a token; measured, see docs/planning.md."""

REDUCE_SECONDS = 10e-6
"""One tensor-parallel reduction in a decoding step; each layer has two."""


@dataclass(frozen=True)
class ClusterPlan:
    """Needs of a run on one number of GPUs."""

    parameters: int
    layout: Layout
    memory: ClusterMemory
    capacity: int  # bytes of one GPU
    usable: int  # bytes that a run may take of them
    tokens: StepTokens
    flops: PhaseValues  # of a step over all GPUs, as executed: recomputation counts
    seconds: dict[str, float]  # of a step by phase, then "total"
    efficiency: float  # operations without recomputation, over the GPUs' peak in a step
    limits: dict[str, float]  # figures that `cluster_table.LIMITS` bounds

    @property
    def fits(self) -> bool:
        serving = self.memory.serving
        return self.memory.peak <= self.usable and (serving is None or serving.together >= 1)


def scale_plan(request: PlanRequest) -> list[ClusterPlan]:
    """Plan a recipe on its own GPUs and on those of GPU_COUNTS that its layout can use."""
    plans = []
    for gpus in sorted({*GPU_COUNTS, request.gpus}):
        try:
            plans.append(make_cluster_plan(replace(request, gpus=gpus)))
        except InputError:  # the layout cannot divide this number
            if gpus == request.gpus:
                raise
    return plans


@lru_cache
def make_cluster_plan(request: PlanRequest) -> ClusterPlan:
    """Plan a run on `request.gpus` GPUs.

    Raises InputError for unknown names, and for a model or a layout that cannot be planned.
    """
    workload, config = make_workload(request), request.config
    layout = layout_of(config, request.gpus, len(layers_of(workload.model)))
    rows = cluster_rows(config, workload.method, workload.lengths)
    trained = deal(rows.trained, layout, config, updates=config.updates_per_rollout)
    scored = [deal(part, layout, config) for part in rows.scoring_passes(config)]
    passes = {"scoring": scored, "update": [trained]}
    tokens = count_cluster_tokens(config, workload.method, workload.lengths)
    flops = _flops(workload, rows, recompute=config.cluster_recomputes)
    memory_plan = _memory(workload, layout, trained.at_once)
    arithmetic = _arithmetic_seconds(workload, layout, flops, passes)
    traffic = _traffic_seconds(workload, layout, tokens, passes)
    # FSDP2's traffic runs beside the arithmetic; Megatron's, as verl sets it, takes turns with it
    combine = sum if layout.megatron else max
    sent_rows = config.batch * (len(rows.scored) + len(rows.answers) + len(rows.trained))
    sent_tokens = tokens.scored + tokens.trained
    seconds = {
        "rollout": _rollout_seconds(workload, layout, memory_plan.serving, flops.rollout),
        "scoring": combine((arithmetic["scoring"], traffic["scoring"])),
        "update": combine((arithmetic["update"], traffic["update"])),
        "push": traffic["push"] if workload.method.samples else 0.0,
        "controller": ROW_SECONDS * sent_rows + TOKEN_SECONDS * sent_tokens,
    }
    total = sum(seconds.values())
    useful = _flops(workload, rows, recompute=False).total
    return ClusterPlan(
        parameters=sum(p.numel() for p in workload.model.parameters()),
        layout=layout,
        memory=memory_plan,
        capacity=request.gpu.memory,
        usable=request.gpu.usable,
        tokens=tokens,
        flops=flops,
        seconds={**seconds, "total": total},
        efficiency=useful / (total * request.gpus * request.gpu.peak_flops(config.dtype)),
        limits={
            "rows": trained.rows,
            "prompts": config.batch / layout.servers,
            "network": traffic["update"] / arithmetic["update"],
            "controller": seconds["controller"] / total,
        },
    )


@dataclass(frozen=True)
class Passes:
    """Micro-batches of some rows on a data-parallel rank."""

    rows: float  # mean over the ranks
    at_once: int  # rows of a micro-batch
    batches: int
    imbalance: float  # rows of the busiest rank over the mean


def cluster_rows(config: Config, method: Method, lengths: RowLengths) -> GroupRows:
    """Return the rows of one prompt; verl always scores before it trains."""
    rows = work.group_rows(config, method, lengths)
    if method.samples and not rows.scored:  # one pass, whose last row may be the null trace
        return replace(rows, scored=rows.trained, trained=rows.trained[: config.traces])
    return rows


def deal(group: Sequence[Row], layout: Layout, config: Config, updates: int = 1) -> Passes:
    """Divide rows over the ranks, in micro-batches of tokens_per_batch or one row.

    verl repeats rows up to a multiple of the ranks.
    """
    rows, longest = len(group) * config.batch // updates, max(len(row.ids) for row in group)
    own = -(-rows // layout.ranks)
    batches = -(-own * longest // max(config.token_limit, longest))
    at_once = -(-own // batches)
    return Passes(rows / layout.ranks, at_once, -(-own // at_once), own * layout.ranks / rows)


def count_cluster_tokens(config: Config, method: Method, lengths: RowLengths) -> StepTokens:
    """Return the tokens of one step over all GPUs."""
    B, rows = config.batch, cluster_rows(config, method, lengths)
    scored = B * sum(_tokens(part) for part in rows.scoring_passes(config))
    trained = B * _tokens(rows.trained)
    return StepTokens(
        prefilled=B * work.prefilled_tokens(config, method, lengths),
        sampled=B * work.sampled_tokens(config, method, lengths),
        scored=scored,
        trained=trained,
        null=B * len((rows.answers or rows.scored)[-1].ids) if method.samples else 0,
        unshared=scored + trained,
    )


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.ids) for row in rows)


def _flops(workload: Workload, rows: GroupRows, *, recompute: bool) -> PhaseValues:
    """Return the operations of one step over all GPUs; verl computes the logits of prompts too."""
    B, config = workload.config.batch, workload.config

    def count(part: Sequence[Row], cost: TokenCost, attention: float = 1, head: int = 1) -> float:
        linear = (cost.flops + head * cost.head_flops) * _tokens(part)
        return linear + attention * work.attention_flops(cost, [(0, len(r.ids)) for r in part])

    rollout = work.rollout_flops(config, workload.method, workload.lengths, workload.token)
    scoring = sum(count(part, workload.token) for part in rows.scoring_passes(config))
    cost = work.with_backward(workload.token, recompute)
    update = count(rows.trained, cost, attention=3.5 + recompute, head=3)
    return PhaseValues(B * rollout, B * scoring, B * update)


def _memory(workload: Workload, layout: Layout, at_once: int) -> ClusterMemory:
    """Return the memory of a GPU that updates on micro-batches of `at_once` rows.

    Tensor and context parallelism divide the activations. A pipeline does not: its first stage
    keeps those of as many micro-batches as there are stages.
    """
    config, model, width = workload.config, workload.model, resident.BYTES[workload.config.dtype]
    stays = resident.cluster_resident(model, config, workload.method, layout)
    weights = stays.weights if layout.megatron else stays.masters
    moments = stays.optimizer + (stays.masters if layout.megatron else 0)
    groups = [work.group_rows(config, workload.method, workload.lengths, i) for i in range(at_once)]
    rows = tuple(max(group.trained, key=lambda row: len(row.ids)) for group in groups)
    again, device_type = config.cluster_recomputes, workload.gpu.device_type
    update = count_update(model, rows, recompute=again, device_type=device_type)
    logits = _tokens(rows) * resident.vocabulary_size(model) * (4 if layout.megatron else width)
    parts = layout.tensor * layout.context
    return ClusterMemory(
        resident=stays,
        offloaded=weights * layout.param_offload + moments * layout.optimizer_offload,
        serving=_serving(workload, layout, width) if workload.method.samples else None,
        activations=update.kept // parts,
        passing=(update.peak - update.kept) // parts,
        logits=logits // parts,
        gathered=0 if layout.megatron else gathered_bytes(model, model.dtype),
        reserve=memory.reserved_bytes(workload.gpu, processes=2),
    )


def _serving(workload: Workload, layout: Layout, width: int) -> Serving:
    weights = resident.weight_bytes(workload.model, workload.config) // layout.rollout_tensor
    cache = int(layout.utilization * workload.gpu.memory) - weights - memory.CONTEXT_BYTES
    cap = workload.config.max_prompt_tokens + 1 + workload.config.max_trace_tokens
    row = cap * workload.token.cache_bytes(width) // layout.rollout_tensor
    return Serving(weights, max(0, cache), max(0, cache) // row)


def _arithmetic_seconds(
    workload: Workload, layout: Layout, flops: PhaseValues, passes: dict[str, list[Passes]]
) -> dict[str, float]:
    """Return the seconds of arithmetic on the busiest rank; a pipeline idles while it fills."""
    rate = workload.gpu.peak_flops(workload.config.dtype) * workload.gpu.mfu * layout.gpus
    seconds = {"scoring": flops.scoring / rate, "update": flops.update / rate}
    for phase, parts in passes.items():
        batches = max((part.batches for part in parts), default=1)
        seconds[phase] *= max((part.imbalance for part in parts), default=1.0)
        seconds[phase] *= 1 + (layout.pipeline - 1) / batches
    return seconds


def _traffic_seconds(
    workload: Workload, layout: Layout, tokens: StepTokens, passes: dict[str, list[Passes]]
) -> dict[str, float]:
    """Return the seconds of collectives.

    FSDP2 gathers parameters in each forward and backward, and reduces float32 gradients. Megatron
    gathers and reduces activations twice a layer in each pass, and once an update the gradients
    (float32) and the new weights.
    """
    config, model, updates = workload.config, workload.model, workload.config.updates_per_rollout
    numbers = sum(p.numel() for p in model.parameters())

    def ring(size: float, members: int, apart: int = 1) -> float:  # every `apart`-th GPU
        nodes = -(-members // max(1, layout.per_node // apart))
        return workload.gpu.ring_seconds(size, members, nodes)

    if not layout.megatron:
        width = resident.BYTES[config.dtype]
        scored, trained = (sum(p.batches for p in passes[name]) for name in ("scoring", "update"))
        return {
            "scoring": ring(numbers * width * scored, layout.shards),
            "update": ring(numbers * (2 * width + 4) * trained * updates, layout.shards),
            "push": ring(resident.pushed_bytes(model, layout.shards), layout.shards),
        }
    layers, hidden = len(layers_of(model)), model.config.get_text_config().hidden_size
    per_token = 8 * layers / layout.pipeline * hidden / layout.context / layout.ranks
    directions = 2 + config.cluster_recomputes  # forward, backward, recomputed forward
    reduced = 6 * resident.stage_parameters(model, layout) * updates
    pushed = 2 * numbers  # bfloat16: over the pipeline, then over tensor parallelism
    return {
        "scoring": ring(per_token * tokens.scored, layout.tensor),
        "update": ring(per_token * tokens.trained * directions, layout.tensor)
        + ring(reduced, layout.ranks * layout.context, apart=layout.tensor),
        "push": ring(pushed / layout.tensor, layout.pipeline, apart=layout.tensor)
        + ring(pushed, layout.tensor),
    }


def _rollout_seconds(
    workload: Workload, layout: Layout, serving: Serving | None, flops: float
) -> float:
    """Return the seconds of a rollout on the fullest server.

    All traces of a prompt go to one server, which decodes them in waves up to the cap.
    """
    if serving is None:
        return 0.0
    config, gpu, lengths, token = workload.config, workload.gpu, workload.lengths, workload.token
    rows = -(-config.batch // layout.servers) * config.traces
    together = max(1, min(rows, layout.sequences, serving.together))
    running = min(1.0, lengths.trace / config.max_trace_tokens)
    row = token.cache_bytes(resident.BYTES[config.dtype]) / layout.rollout_tensor
    cached = running * together * row * (lengths.prompt + lengths.trace / 2)
    reducing = 2 * len(token.layers) * REDUCE_SECONDS if layout.rollout_tensor > 1 else 0.0
    step = reading_seconds(gpu, serving.weights + cached) + reducing
    steps = -(-rows // together) * decoding_steps(config, workload.method)
    busy = min(config.batch, layout.servers) * layout.rollout_tensor
    return max(steps * step, flops / (gpu.peak_flops(config.dtype) * gpu.mfu * busy))
