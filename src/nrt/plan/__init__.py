"""What a run will need, on paper: memory, tokens, arithmetic, hours. Nothing is loaded and no GPU is asked: the model is built on torch's
meta device, where tensors have shapes and no numbers, and counted there.

Layouts of several GPUs under torchrun are two: replicas (`ddp`) and shards (`fsdp`), see `plan.memory.resident`. verl's are in
`plan.cluster`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nrt.config import Config
from nrt.engine.verl.bridge import refuse
from nrt.errors import unknown
from nrt.plan.advice import Step, advise, enough
from nrt.plan.cluster import ClusterPlan, Scaled, advise_cluster, make_cluster_plan, scale
from nrt.plan.hardware import GPUS, Accelerator, accelerator
from nrt.plan.planning import Plan, Question, make_plan
from nrt.plan.work import Lengths

__all__ = ["GPUS", "Accelerator", "Lengths", "Plan", "Question", "Step", "advise", "ask", "ask_cluster", "make_plan"]


def ask(
    config: Config,
    *,
    gpu: str = "h100",
    gpus: int = 1,
    memory: float | None = None,
    parallel: str | None = None,
    means: tuple[int | None, int | None, int | None] = (None, None, None),
    rows: int | None = None,
    price: float | None = None,
    mfu: float | None = None,
    bandwidth: float | None = None,
) -> tuple[Question, Plan, list[Step], int | None]:
    """(question, plan, what to change, how many GPUs in shards would do where no change helps), from what the command line gives."""
    if parallel not in (None, "ddp", "fsdp"):
        raise unknown("layout", parallel, ("ddp", "fsdp"))
    question = ask_for(config, gpu, gpus, memory, means, rows=rows, price=price, mfu=mfu, bandwidth=bandwidth, parallel=parallel)
    plan = make_plan(question)
    advice = advise(question, plan)
    helped = plan.fits or (advice and advice[-1].fits)
    return question, plan, advice, None if helped else enough(question)


def ask_cluster(
    config: Config,
    *,
    gpu: str = "h100",
    memory: float | None = None,
    means: tuple[int | None, int | None, int | None] = (None, None, None),
    network: float | None = None,
    **given: Any,
) -> tuple[Question, ClusterPlan, list[Step], Scaled]:
    """The same for engine=verl, whose GPUs the config counts: (question, plan, what to change, the recipe on fewer and more GPUs)."""
    refuse(config)
    question = ask_for(config, gpu, config.nodes * config.gpus_per_node, memory, means, **given)
    if network is not None:
        question = replace(question, gpu=replace(question.gpu, network=network * 1e9))
    plan = make_cluster_plan(question)
    return question, plan, advise_cluster(question, plan), scale(question)


def ask_for(
    config: Config,
    gpu: str,
    gpus: int,
    memory: float | None,
    means: tuple[int | None, int | None, int | None],
    *,
    mfu: float | None = None,
    bandwidth: float | None = None,
    **values: Any,
) -> Question:
    """The question; what is None is the recipe's, or the accelerator's."""
    found = accelerator(gpu, memory)
    found = replace(found, mfu=mfu or found.mfu, bandwidth_share=bandwidth or found.bandwidth_share)
    caps = vars(Lengths.caps(config))
    lengths = {name: mean for name, mean in zip(caps, means, strict=True) if mean is not None}
    return Question(config, found, gpus, lengths=Lengths(**(caps | lengths)) if lengths else None, **values)
