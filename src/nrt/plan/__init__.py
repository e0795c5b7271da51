"""What a run will need, on paper: memory, tokens, arithmetic, hours. Nothing is loaded and no GPU is asked: the model is built on torch's
meta device, where tensors have shapes and no numbers, and counted there.

Layouts of several GPUs are two: replicas (`ddp`) and shards (`fsdp`), see `plan.memory.resident`. A third, such as verl's with tensor and
sequence parallelism, would be one more there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nrt.config import Config
from nrt.errors import unknown
from nrt.plan.advice import Step, advise, enough
from nrt.plan.hardware import GPUS, Accelerator, accelerator
from nrt.plan.planning import Plan, Question, make_plan
from nrt.plan.work import Lengths

__all__ = ["GPUS", "Accelerator", "Lengths", "Plan", "Question", "Step", "advise", "ask", "make_plan"]


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
    found = accelerator(gpu, memory)
    found = replace(found, mfu=mfu or found.mfu, bandwidth_share=bandwidth or found.bandwidth_share)
    caps = vars(Lengths.caps(config))
    given = {name: mean for name, mean in zip(caps, means, strict=True) if mean is not None}
    lengths = Lengths(**(caps | given)) if given else None
    values: dict[str, Any] = {"parallel": parallel, "lengths": lengths, "rows": rows, "price": price}
    question = Question(config, found, gpus, **values)
    plan = make_plan(question)
    advice = advise(question, plan)
    helped = plan.fits or (advice and advice[-1].fits)
    return question, plan, advice, None if helped else enough(question)
