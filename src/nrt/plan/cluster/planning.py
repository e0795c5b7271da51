"""A question about engine=verl → a plan of its layout; the same recipe on fewer and more GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from nrt.config import Config
from nrt.engine.weights import layers_of
from nrt.plan.cluster import clock, traffic
from nrt.plan.cluster.clock import Timed, time_step
from nrt.plan.cluster.layout import Layout, fits_into, layout_of, on
from nrt.plan.cluster.memory import ClusterMemory, cluster_memory
from nrt.plan.cluster.work import count_cluster_flops, count_cluster_tokens, rows_of, sent_bytes
from nrt.plan.counting import count_token
from nrt.plan.memory import GAPS, RESERVE
from nrt.plan.planning import Question
from nrt.plan.shapes import empty_model
from nrt.plan.work import Phases, Tokens
from nrt.training.resolve import import_plugin, resolve_method
from nrt.training.setup import steps_of

RUNGS = (8, 32, 128, 512, 1024)
"""GPUs of the ladder, beside those asked about."""
CHECKPOINT = 16
"""Bytes a parameter: weights and two moments by the workers, and the model once more."""
STORAGE = 5e9
"""Bytes/s that the shared storage takes from all of them."""


@dataclass(frozen=True)
class ClusterPlan:
    """The answer, for one number of GPUs."""

    parameters: int
    batch: int  # prompts a step
    layout: Layout
    memory: ClusterMemory
    capacity: int  # bytes of a GPU
    tokens: Tokens
    flops: Phases  # of a step, over all GPUs, as executed
    useful: float  # without what is computed again
    timed: Timed
    efficiency: float  # useful operations over what the GPUs could do at their peaks in the time of a step
    sent: int  # bytes that the controller sends and takes, a step
    checkpoint: int  # bytes
    checkpoint_share: float  # of the time, spent on writing them
    steps: int | None
    cost: float | None

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.capacity and (self.memory.serving is None or self.memory.serving.together >= 1)

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.timed.clock.total / 3600


@dataclass(frozen=True)
class Scaled:
    """The recipe on more and fewer GPUs."""

    fixed: tuple[ClusterPlan, ...]  # with its own batch
    grown: tuple[ClusterPlan, ...]  # with as many prompts a GPU as where it was asked about


@lru_cache
def make_cluster_plan(question: Question) -> ClusterPlan:
    """Raises InputError for names that are not known, a model that cannot be counted, GPUs that cannot be laid out so."""
    config = question.config
    for plugin in config.plugins:
        import_plugin(plugin)
    method, lengths = resolve_method(config.method, config.objective), question.mean
    model = empty_model(config)
    layout, token = layout_of(config, question.gpus, len(layers_of(model))), count_token(model)
    memory = cluster_memory(model, config, method, lengths, token, layout=layout, gpu=question.gpu)
    tokens = count_cluster_tokens(config, method, lengths)
    flops, useful = count_cluster_flops(config, method, lengths, token)
    timed = time_step(model, config, method, lengths, token, tokens, flops, memory, layout=layout, gpu=question.gpu)
    parameters, rows = sum(p.numel() for p in model.parameters()), rows_of(config, method, lengths)
    steps = steps_of(config, question.rows) if question.rows else config.steps
    seconds, saving = timed.clock.total, CHECKPOINT * parameters / STORAGE
    run = None if steps is None else steps * seconds / 3600 * question.gpus
    between = seconds * config.save_every
    return ClusterPlan(
        parameters=parameters,
        batch=config.batch,
        layout=layout,
        memory=memory,
        capacity=question.gpu.memory,
        tokens=tokens,
        flops=flops,
        useful=useful.total,
        timed=timed,
        efficiency=useful.total / (seconds * question.gpus * question.gpu.flops(config.dtype)),
        sent=config.batch * sent_bytes(rows.scored, rows.trained),
        checkpoint=CHECKPOINT * parameters,
        checkpoint_share=saving / (between + saving) if config.save_every else 0.0,
        steps=steps,
        cost=None if run is None or question.price is None else run * question.price,
    )


def scale(question: Question) -> Scaled:
    """On the rungs that the layout can be divided into, and where it was asked about."""
    layers = len(layers_of(empty_model(question.config)))
    counts = [n for n in sorted({*RUNGS, question.gpus}) if fits_into(on(question.config, n), n, layers)]
    return Scaled(*(tuple(make_cluster_plan(_on(question, n, grown=grown)) for n in counts) for grown in (False, True)))


def assumptions(question: Question, plan: ClusterPlan) -> list[str]:
    config, gpu, mean, layout = question.config, question.gpu, question.mean, plan.layout
    lengths = "means given" if question.lengths else "the recipe's caps: every prompt, trace and answer as long as it may be"
    logits = "float32 logits, cut by tensor parallelism" if layout.megatron else "logits of all tokens once in an update, twice in scoring"
    traffic_said = "after one another" if layout.megatron else "at the same time"
    reducing = f", and {clock.REDUCE_SECONDS * 1e6:g} µs for each of two reductions a layer" if layout.rollout_tensor > 1 else ""
    return [
        f"lengths {mean.prompt}/{mean.trace}/{mean.answer} tokens of prompt, trace and answer ({lengths}); all rows alike",
        "verl 0.9.1 as its source reads and nrt sets it: rows by themselves, prompts too; a GPU trains, then serves rollouts",
        f"memory: activations counted on torch's meta device with fused attention; {logits}; reserved: twice {RESERVE / 2**30:.0f} GiB "
        f"for the processes' contexts and {GAPS:.0%} for gaps; the server takes {layout.utilization:g} of the GPU, asleep nothing",
        f"scoring and update at {gpu.mfu:.0%} of {gpu.flops(config.dtype) / 1e12:g} TFLOP/s ({config.dtype}); arithmetic and traffic "
        f"{traffic_said}; the busiest rank counts",
        f"rollout: a prompt's traces on one server, waves of up to {layout.sequences} rows up to the cap; a decoding step reads weights "
        f"and cache at {gpu.bandwidth_share:.0%} of {gpu.bandwidth / 1e12:g} TB/s{reducing}",
        f"links of {gpu.link / 1e9:g} GB/s a GPU in a node and {gpu.network / 1e9:g} between nodes, one way, reached to "
        f"{traffic.SHARE:.0%}; rings, {traffic.HOP * 1e6:g} µs a hop, {traffic.FAR_HOP * 1e6:g} between nodes; "
        f"{clock.PCIE / 1e9:g} GB/s to the machine's memory",
        f"controller: one process, {clock.ROW_SECONDS * 1e6:.0f} µs a row and {clock.TOKEN_SECONDS * 1e9:.0f} ns a token of scoring "
        "and update: processor time of the two-worker run on a 2-core CPU (docs/planning.md)",
        f"checkpoints: {CHECKPOINT} bytes a parameter at {STORAGE / 1e9:g} GB/s, every save_every={config.save_every} steps",
        "not counted: held-out evaluation, reading data, waking servers up, context parallelism's traffic, prompts that a filter replaces",
    ]


def _on(question: Question, gpus: int, *, grown: bool) -> Question:
    config: Config = on(question.config, gpus)
    if grown:
        updates = config.updates_per_rollout
        batch = max(1, config.batch * gpus // question.gpus // updates) * updates
        config = Config.model_validate(config.model_dump() | {"batch": batch})
    return replace(question, config=config, gpus=gpus)
