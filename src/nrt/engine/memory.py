"""Maximum tokens of a micro-batch, and what an engine does if memory runs out.

On a CPU too many tokens raise no error: the operating system ends the process. So `auto_tokens`
estimates how many fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

from nrt.config import AUTO_TOKENS_PER_BATCH
from nrt.distributed import ProcessGroup
from nrt.errors import InputError, RunError, is_out_of_memory
from nrt.rollout.vllm_memory import MARGIN
from nrt.system.environment import machine_memory

T = TypeVar("T")

CONTEXT_BYTES = 2**30
"""CUDA context and kernels of a process."""

BACKWARD_SHARE = 4
"""A backward may use 1/4 of the machine's memory; everything else has 3/4."""

MIN_TOKENS = 1024
"""With fewer tokens, a pass does little more than read the weights."""


@dataclass
class TokenBudget:
    """Maximum tokens of a micro-batch, which may be halved once if memory runs out."""

    tokens: int
    may_halve: bool
    processes: ProcessGroup
    lockstep: bool  # all processes must run equally many passes, so none can fail and retry
    may_recompute: bool = False  # not all micro-batches are recomputed yet, and they can be
    halved: bool = False
    recomputes_all: bool = False  # since memory ran out once

    def halve(self) -> None:
        """Halve the tokens of a micro-batch."""
        self.halved, self.tokens = True, max(1, self.tokens // 2)

    def retry(
        self, work: Callable[[], T], *, reset: Callable[[], None], warn: Callable[[str], None]
    ) -> T:
        """Call `work`; if memory runs out, call it again with all micro-batches recomputed, and
        then with half the tokens a micro-batch.

        Raises InputError if neither is allowed or helped, RunError if the other processes wait for
        this one.

        Args:
            reset: removes what the failed call left, before the next call.
            warn: receives a message before each further call.
        """
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            first_time = self.may_recompute and not self.recomputes_all
            if not first_time and (self.halved or not self.may_halve):
                error_class = RunError if self.lockstep else InputError
                raise error_class(
                    f"out of memory: lower tokens_per_batch, which is {self.tokens}, "
                    "or set gradient_checkpointing=true"
                ) from error
        # Outside the handler: its traceback holds the tensors of the failed pass.
        if first_time:
            self.recomputes_all = True
            change = "all micro-batches are recomputed"
        else:
            self.halve()
            change = f"tokens_per_batch is {self.tokens}"
        reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warn(f"out of memory: {change} from now on; the gradient stays the same")
        return self.retry(work, reset=reset, warn=warn)

    def fail_together(self, work: Callable[[], T]) -> T:
        """Return this process's result of `work`; if memory runs out in one process, raise in all.

        Raises OutOfMemoryError.
        """
        result, message = None, ""
        try:
            result = work()
        except RuntimeError as error:
            if self.lockstep or not is_out_of_memory(error):
                raise  # ends this process, and so the others
            message = str(error)  # the error itself would hold the tensors of the failed pass
        if self.processes.any(bool(message)):
            raise torch.OutOfMemoryError(message or "out of memory in another process")
        return cast(T, result)


def free_gpu_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that a process may still allocate.

    `MARGIN` of the GPU is for others and for gaps, as in `nrt plan`. What others hold beyond a
    context (CUDA graphs, NCCL, a sleeping vLLM) is gone from the free bytes already, and counts as
    part of it.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved - CONTEXT_BYTES)
    cached = reserved - torch.cuda.memory_allocated(device)
    return free + cached - max(0, int(MARGIN * total) - others)


def auto_tokens(
    model: Any, device: torch.device, *, recompute: bool = False, processes: int = 1
) -> int:
    """Return the number for tokens_per_batch=auto.

    It is AUTO_TOKENS_PER_BATCH, or on a CPU as many tokens as fit. The number is the same whenever
    a run starts on the same machine, whatever else uses its memory.

    A layer of the Llama family keeps 12 hidden and 3 intermediate vectors a token for its backward.
    (Measured on SmolLM2-135M: 11,500 numbers a layer, 1.4 MB a token in all layers.) The estimate
    adds a third for other families.

    Args:
        recompute: with gradient checkpointing, layers keep only their inputs.
        processes: those that share the memory of this machine.
    """
    if device.type != "cpu":
        return AUTO_TOKENS_PER_BATCH
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    hidden = getattr(config, "hidden_size", None)
    if not layers or not hidden:
        return AUTO_TOKENS_PER_BATCH
    intermediate = getattr(config, "intermediate_size", None)
    if not isinstance(intermediate, int):
        intermediate = 4 * hidden
    numbers_of_layer = 16 * hidden + 4 * intermediate
    # gradient checkpointing keeps all layers' inputs, and the rest of one layer at a time
    numbers = layers * hidden + numbers_of_layer if recompute else layers * numbers_of_layer
    bytes_each = max(4, torch.finfo(model.dtype).bits // 8)
    fitting = machine_memory() // processes // BACKWARD_SHARE // (numbers * bytes_each)
    return max(MIN_TOKENS, min(AUTO_TOKENS_PER_BATCH, fitting // 256 * 256))
