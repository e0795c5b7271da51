"""Accelerators as their vendors state them."""

from __future__ import annotations

from dataclasses import dataclass

from nrt.environment import machine_memory
from nrt.errors import unknown

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """Peaks from data sheets; `mfu` and `bandwidth_share` are what a run is assumed to reach of them."""

    name: str
    memory: int  # bytes
    flops_short: float  # FLOP/s, dense bfloat16
    flops_float: float  # FLOP/s, float32 without TF32, which torch leaves off
    bandwidth: float  # bytes/s
    link: float = 32e9  # bytes/s to the others of its node, one way: NVLink, else PCIe
    network: float = 12.5e9  # bytes/s to other nodes, its share of them
    mfu: float = 0.40
    bandwidth_share: float = 0.60
    call_seconds: float = 15e-6  # from one operation of an eager forward to the next

    @property
    def kind(self) -> str:
        """torch's name of such devices."""
        return "cpu" if self.name == "cpu" else "cuda"

    def flops(self, dtype: str) -> float:
        """FLOP/s at its peak, in that type."""
        return self.flops_short if dtype == "bfloat16" else self.flops_float


GPUS: dict[str, Accelerator] = {
    gpu.name: gpu
    for gpu in (
        Accelerator("h100", int(79.6 * GIB), 989e12, 67e12, 3.35e12, 450e9, 50e9),  # SXM
        Accelerator("h200", int(140.4 * GIB), 989e12, 67e12, 4.8e12, 450e9, 50e9),  # SXM
        Accelerator("a100", int(79.3 * GIB), 312e12, 19.5e12, 2.04e12, 300e9, 25e9),  # SXM, 80 GB
        Accelerator("l40s", int(44.9 * GIB), 362e12, 91.6e12, 0.864e12),
        Accelerator("rtx4090", int(23.6 * GIB), 165e12, 82.6e12, 1.008e12),
    )
}
"""Memory as the driver shows it: less than on the box."""


def accelerator(name: str, memory: float | None = None) -> Accelerator:
    """The accelerator of that name, with `memory` GiB where given. `cpu` is this machine. Raises InputError for a name not in the table."""
    known = {**GPUS, "cpu": _this_machine()}
    if name not in known:
        raise unknown("GPU", name, known)
    found = known[name]
    return found if memory is None else Accelerator(**{**vars(found), "memory": int(memory * GIB)})


def _this_machine() -> Accelerator:
    """One thread, at the rate and share of it that docs/performance.md has for one core with AVX-512; its bandwidth is a guess."""
    return Accelerator("cpu", machine_memory(), 1e11, 1e11, 2e10, mfu=0.8)
