"""Plan a run before a GPU is rented: memory, tokens, arithmetic, hours and cost.

No weights are loaded and no GPU is used: the model is built and measured on torch's meta device,
where tensors have shapes but no values. Over several GPUs under torchrun a run is replicated
(`ddp`) or sharded (`fsdp`), see `plan.resident`. For engine=verl see `plan.cluster`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nrt.backends.verl.bridge import check_supported
from nrt.config import Config
from nrt.errors import unknown_name
from nrt.plan.advice import Advice, advise, sufficient_gpus
from nrt.plan.cluster import make_cluster_plan, scale_plan
from nrt.plan.cluster_table import ClusterReport
from nrt.plan.hardware import GPUS, Accelerator, accelerator
from nrt.plan.planning import Plan, PlanRequest, make_plan
from nrt.plan.report import PlanReport
from nrt.plan.work import RowLengths

__all__ = [
    "GPUS",
    "Accelerator",
    "Advice",
    "ClusterReport",
    "Plan",
    "PlanReport",
    "PlanRequest",
    "RowLengths",
    "accelerator",
    "advise",
    "make_plan",
    "plan_cluster",
    "plan_run",
]


def plan_run(
    config: Config, *, gpus: int = 1, parallel: str | None = None, **options: Any
) -> PlanReport:
    """Plan a run on GPUs of one machine, with the options of the command line.

    Args:
        parallel: "ddp", "fsdp", or None for what the config gives.
        options: see `make_request`.
    """
    if parallel not in (None, "ddp", "fsdp"):
        raise unknown_name("layout", parallel, ("ddp", "fsdp"))
    request = make_request(config, gpus=gpus, parallel=parallel, **options)
    plan = make_plan(request)
    advice = advise(request, plan)
    fits = plan.fits or (advice and advice[-1].fits)
    return PlanReport(request, plan, advice, None if fits else sufficient_gpus(request))


def plan_cluster(config: Config, *, network: float | None = None, **options: Any) -> ClusterReport:
    """Plan a run with engine=verl on the GPUs of the config, and on fewer and more GPUs.

    Args:
        network: GB/s of one GPU to other nodes, one way.
        options: see `make_request`.
    """
    check_supported(config)
    request = make_request(config, gpus=config.nodes * config.gpus_per_node, **options)
    if network is not None:
        request = replace(request, gpu=replace(request.gpu, network=network * 1e9))
    return ClusterReport(request, make_cluster_plan(request), scale_plan(request))


def make_request(
    config: Config,
    *,
    gpu: str = "h100",
    memory: float | None = None,
    means: tuple[int | None, int | None, int | None] = (None, None, None),
    mfu: float | None = None,
    bandwidth: float | None = None,
    **values: Any,
) -> PlanRequest:
    """Return the request that the options of the command line make.

    Args:
        gpu: name of the accelerator.
        memory: GiB of one GPU.
        means: mean tokens of prompt, trace and answer; None: the recipe's cap.
        mfu: share of the arithmetic that scoring and update reach.
        bandwidth: share of the bandwidth that decoding reaches.
        values: other fields of `PlanRequest`.
    """
    hardware = accelerator(gpu, memory)
    hardware = replace(
        hardware,
        mfu=mfu or hardware.mfu,
        bandwidth_share=bandwidth or hardware.bandwidth_share,
    )
    lengths = None
    if any(mean is not None for mean in means):
        caps = RowLengths.caps(config)
        prompt, trace, answer = means
        lengths = RowLengths(
            caps.prompt if prompt is None else prompt,
            caps.trace if trace is None else trace,
            caps.answer if answer is None else answer,
        )
    return PlanRequest(config, hardware, lengths=lengths, **values)
