"""Seconds of a step on a cluster, phase by phase, and what they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrt.config import Config
from nrt.objective import Method
from nrt.plan.cluster.layout import Layout
from nrt.plan.cluster.memory import ClusterMemory
from nrt.plan.cluster.traffic import NOTHING, Moved, activations_moved, gradients_reduced, push, weights_gathered
from nrt.plan.cluster.work import Passes, rows_of, scoring_passes, update_passes
from nrt.plan.counting import Token
from nrt.plan.hardware import Accelerator
from nrt.plan.memory import WIDTH
from nrt.plan.planning import decoding_steps, step_seconds
from nrt.plan.work import Lengths, Phases, Tokens

ROW_SECONDS, TOKEN_SECONDS = 5e-4, 3e-7
"""Of the controller, one process: a row of scoring or update, and a token of it. Processor time, measured (docs/planning.md)."""
REDUCE_SECONDS = 10e-6
"""Of a tensor-parallel reduction of a decoding step, of which a layer has two."""
PCIE = 50e9
"""Bytes/s to the machine's memory, where something is offloaded."""


@dataclass(frozen=True)
class Clock:
    """Seconds of one step."""

    rollout: float
    scoring: float
    update: float
    push: float
    controller: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Timed:
    """A step's seconds, and what else the limits look at."""

    clock: Clock
    pushed: Moved
    trained: Moved  # weights gathered and gradients reduced in the updates of a step
    scored: Moved  # weights gathered while scoring
    arithmetic: float  # seconds of the updates' floating-point operations alone
    longest: float  # seconds of one trace up to its cap with a server of its own
    prompts: float  # of a rollout server
    passes: Passes  # of one update


def time_step(
    model: Any, config: Config, method: Method, lengths: Lengths, token: Token, tokens: Tokens, flops: Phases, memory: ClusterMemory,
    *, layout: Layout, gpu: Accelerator,
) -> Timed:  # fmt: skip
    """Arithmetic and FSDP2's traffic run at the same time; Megatron's, as verl sets it, one after the other."""
    rows, rate = rows_of(config, method, lengths), gpu.flops(config.dtype) * gpu.mfu * layout.gpus
    one, forwards = update_passes(config, rows, layout.ranks), scoring_passes(config, rows, layout.ranks)
    updates = config.updates_per_rollout
    arithmetic = flops.update / rate * one.idle
    scoring = flops.scoring / rate * max((p.idle for p in forwards), default=1.0)
    trained, scored = _traffic(model, config, tokens, layout, gpu, one, forwards)
    if layout.megatron:
        arithmetic *= 1 + (layout.pipeline - 1) / one.batches
        scoring *= 1 + (layout.pipeline - 1) / max((p.batches for p in forwards), default=1)
    both = (lambda work, moved: work + moved) if layout.megatron else max
    woken = 2 * (updates * memory.asleep + (len(forwards) + 1) * memory.weights_asleep) / PCIE
    rollout, longest = _rollout(config, method, lengths, token, flops, memory, layout, gpu)
    pushed = push(model, config, layout, gpu) if method.samples else NOTHING
    return Timed(
        clock=Clock(
            rollout=rollout,
            scoring=both(scoring, scored.seconds),
            update=both(arithmetic, trained.seconds) + woken,
            push=pushed.seconds,
            controller=controller_seconds(config, method, lengths, tokens),
        ),
        pushed=pushed,
        trained=trained,
        scored=scored,
        arithmetic=arithmetic,
        longest=longest,
        prompts=config.batch / layout.servers,
        passes=one,
    )


def controller_seconds(config: Config, method: Method, lengths: Lengths, tokens: Tokens) -> float:
    rows = rows_of(config, method, lengths)
    return ROW_SECONDS * config.batch * (len(rows.scored) + len(rows.trained)) + TOKEN_SECONDS * (tokens.scored + tokens.trained)


def _traffic(
    model: Any, config: Config, tokens: Tokens, layout: Layout, gpu: Accelerator, one: Passes, forwards: list[Passes]
) -> tuple[Moved, Moved]:
    """(of a step's updates, of its scoring)."""
    updates, reduced = config.updates_per_rollout, gradients_reduced(model, layout, gpu)
    if layout.megatron:
        again = 1 + config.gradient_checkpointing
        trained = activations_moved(model, tokens.trained / layout.ranks, layout, gpu, 1 + again)
        return trained + reduced.times(updates), activations_moved(model, tokens.scored / layout.ranks, layout, gpu, 1)
    gathered = weights_gathered(model, config, layout, gpu)
    trained = gathered.times(2 * one.batches) + reduced.times(1 if layout.deferred else one.batches)
    return trained.times(updates), gathered.times(sum(p.batches for p in forwards))


def _rollout(
    config: Config, method: Method, lengths: Lengths, token: Token, flops: Phases, memory: ClusterMemory, layout: Layout, gpu: Accelerator
) -> tuple[float, float]:
    """(seconds of the rollout, of one trace by itself). All traces of a prompt go to one server, which decodes them in waves up to the cap;
    some servers get a prompt more than others, or have none."""
    if memory.serving is None:
        return 0.0, 0.0
    rows = -(-config.batch // layout.servers) * config.traces
    together = max(1, min(rows, layout.sequences, memory.serving.together))
    running = min(1.0, lengths.trace / config.max_trace_tokens)
    row = token.cache_bytes(WIDTH[config.dtype]) / layout.rollout_tensor
    cached = running * together * row * (lengths.prompt + lengths.trace / 2)
    reducing = 2 * len(token.layers) * REDUCE_SECONDS if layout.rollout_tensor > 1 else 0.0
    steps, weights = decoding_steps(config, method), memory.serving.weights
    alone = steps * (step_seconds(gpu, weights) + reducing)
    busy = min(config.batch, layout.servers) * layout.rollout_tensor
    arithmetic = flops.rollout / (gpu.flops(config.dtype) * gpu.mfu * busy)
    waves = -(-rows // together)
    return max(waves * steps * (step_seconds(gpu, weights + cached) + reducing), arithmetic), alone
